package main

import (
	"context"
	"fmt"
	"sync"

	"google.golang.org/genproto/googleapis/rpc/code"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// result is a request's outcome, as the table's "expect" names it. Nil pointers become null.
type result struct {
	End       *string `json:"end"`
	NumTokens int     `json:"num_tokens"`
	Text      string  `json:"text"`
	*failure
}

// failure is code and details of an error.
type failure struct {
	Code   string  `json:"code"`
	Reason *string `json:"reason"`
	Field  *string `json:"field"`
	Retry  bool    `json:"retry"`
}

// failureOf returns what a status says.
func failureOf(s *status.Status) *failure {
	f := &failure{Code: codeName(s.Code())}
	for _, detail := range s.Details() {
		switch detail := detail.(type) {
		case *errdetails.ErrorInfo:
			f.Reason = &detail.Reason
		case *errdetails.BadRequest:
			f.Field = &detail.FieldViolations[0].Field
		case *errdetails.RetryInfo:
			f.Retry = true
		}
	}
	return f
}

// codeName is "INVALID_ARGUMENT", where gRPC's own name is "InvalidArgument".
func codeName(c codes.Code) string { return code.Code(c).String() }

// record is what one request has brought so far. A reader that pauses waits here for its resume.
type record struct {
	pauseAt string
	seen    map[string]*signal
	resumed *signal
	result  result
}

func newRecord(pauseAt string) *record {
	seen := map[string]*signal{"accepted": newSignal(), "delta": newSignal(), "finished": newSignal()}
	return &record{pauseAt: pauseAt, seen: seen, resumed: newSignal()}
}

// wait returns when the event has come, or the end without it.
func (r *record) wait(ctx context.Context, event string) error { return r.seen[event].wait(ctx) }

// saw notes an event, and returns when the next one may be read.
func (r *record) saw(ctx context.Context, event string) error {
	r.seen[event].set()
	if event == r.pauseAt {
		return r.resumed.wait(ctx)
	}
	return nil
}

func (r *record) add(text string, numTokens int) {
	r.result.Text += text
	r.result.NumTokens += numTokens
}

func (r *record) finish(end string, f *failure) {
	r.result.End, r.result.failure = &end, f
	for _, seen := range r.seen {
		seen.set()
	}
}

// signal is something that happens once.
type signal struct {
	once sync.Once
	done chan struct{}
}

func newSignal() *signal { return &signal{done: make(chan struct{})} }

func (s *signal) set() { s.once.Do(func() { close(s.done) }) }

func (s *signal) wait(ctx context.Context) error {
	select {
	case <-s.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("what a step waits for never came: %w", ctx.Err())
	}
}
