package main

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"strconv"
	"strings"
	"sync"
	"time"

	"clforge.dev/clforge"
)

// sdkCase is one case's run by the SDK: a session, with a goroutine for each request.
type sdkCase struct {
	ctx      context.Context
	client   *clforge.Client
	session  *clforge.Session
	window   int
	ask      func(string) error
	records  map[uint64]*record
	requests map[uint64]*clforge.Request
	readers  sync.WaitGroup
	errs     chan error // the first of a reader
}

// runSDK returns the outcome of each request.
func runSDK(ctx context.Context, address string, d description, ask func(string) error) (map[string]any, error) {
	client, err := clforge.New(address)
	if err != nil {
		return nil, err
	}
	defer client.Close()
	c := &sdkCase{
		ctx: ctx, client: client, window: d.Window, ask: ask, errs: make(chan error, 1),
		records: make(map[uint64]*record), requests: make(map[uint64]*clforge.Request),
	}
	if c.window == 0 {
		c.window = defaultWindow
	}
	if err := c.open(); err != nil {
		return nil, err
	}
	defer func() { _ = c.session.Close() }()
	for _, s := range d.Steps {
		if err := c.step(s); err != nil {
			return nil, err
		}
	}
	c.readers.Wait()
	close(c.errs)
	outcome := make(map[string]any)
	for label, record := range c.records {
		outcome[strconv.FormatUint(label, 10)] = record.result
	}
	return outcome, <-c.errs
}

func (c *sdkCase) open() (err error) {
	c.session, err = c.client.NewSession(c.ctx, clforge.WithWindow(c.window))
	return err
}

func (c *sdkCase) step(s step) error {
	switch {
	case s.Submit != nil:
		return c.submit(*s.Submit, s)
	case s.Generate != nil:
		c.read(*s.Generate, c.client.Generate(c.ctx, clforge.Text(s.Text), s.Params.options()...), "")
	case s.Wait != nil:
		return c.records[*s.Wait].wait(c.ctx, s.For)
	case s.Cancel != nil:
		c.requests[*s.Cancel].Cancel()
	case s.Resume != nil:
		c.records[*s.Resume].resumed.set()
	case s.Sleep > 0:
		time.Sleep(time.Duration(s.Sleep * float64(time.Second)))
	case s.Ask != "":
		return c.ask(s.Ask)
	case s.Reopen:
		_ = c.session.Close()
		if err := c.client.WaitForReady(c.ctx); err != nil {
			return err
		}
		return c.open()
	default:
		return fmt.Errorf("no such step: %+v", s)
	}
	return nil
}

func (c *sdkCase) submit(first uint64, s step) error {
	for label := first; label < first+s.count(); label++ {
		request, err := c.session.Submit(c.ctx, clforge.Text(s.Text), s.Params.options()...)
		if err != nil {
			return err
		}
		c.requests[label] = request
		c.read(label, request.Events(c.ctx), s.PauseAt)
	}
	return nil
}

func (c *sdkCase) read(label uint64, events iter.Seq2[clforge.Event, error], pauseAt string) {
	record := newRecord(pauseAt)
	c.records[label] = record
	c.readers.Add(1)
	go func() {
		defer c.readers.Done()
		for event, err := range events {
			if err == nil {
				err = take(c.ctx, record, event)
			} else {
				err = c.fail(record, err)
			}
			if err != nil {
				select {
				case c.errs <- err:
				default:
				}
				return
			}
		}
	}()
}

// take notes an event, and returns when the next one may be read.
func take(ctx context.Context, r *record, event clforge.Event) error {
	switch event := event.(type) {
	case clforge.Accepted:
		return r.saw(ctx, "accepted")
	case clforge.Delta:
		r.add(event.Text, event.NumTokens)
		return r.saw(ctx, "delta")
	case clforge.Finished:
		r.finish(strings.ToUpper(string(event.Reason)), nil)
	}
	return nil
}

// fail notes the error that ended a request; one that no server is the reason of is returned.
func (c *sdkCase) fail(r *record, err error) error {
	var lost *clforge.ConnectionLostError
	var unreachable *clforge.UnreachableError
	var refused *clforge.StatusError
	switch {
	case errors.As(err, &lost):
		r.finish("ERROR", &failure{Code: "CONNECTION_LOST"})
		return nil
	case errors.As(err, &unreachable):
		r.finish("ERROR", &failure{Code: "UNREACHABLE"})
		return nil
	case !errors.As(err, &refused):
		return err
	}
	f := &failure{Code: codeName(refused.Code)}
	if refused.Reason != "UNKNOWN" {
		f.Reason = &refused.Reason
	}
	if refused.Field != "" {
		f.Field = &refused.Field
	}
	_, f.Retry = refused.RetryAfter()
	r.finish("ERROR", f)
	return nil
}
