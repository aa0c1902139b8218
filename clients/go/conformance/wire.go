package main

import (
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync"
	"time"

	pb "clforge.dev/clforge/clforgev1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"
)

const service = "/clforge.v1.TokenizerService/"

// wireCase is one case's run by the generated code, on one stream.
type wireCase struct {
	ctx    context.Context
	cancel context.CancelFunc
	conn   *grpc.ClientConn
	stream grpc.BidiStreamingClient[pb.GenerateTextRequest, pb.GenerateTextResponse]
	call   *failure // of the call beside the stream

	mu       sync.Mutex
	records  map[uint64]*record
	labels   map[uint64]uint64 // by the request's number on the stream, the last one that used it
	expected map[uint64]uint32 // the next update's sequence, by label
}

// runWire returns the outcome of each request, of the stream, and of the call if there was one.
func runWire(ctx context.Context, address string, d description) (map[string]any, error) {
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	c := &wireCase{
		conn: conn, records: make(map[uint64]*record), labels: make(map[uint64]uint64), expected: make(map[uint64]uint32),
	}
	if err := c.open(ctx, d); err != nil {
		return nil, err
	}
	defer c.cancel()
	ended := make(chan error, 1)
	go func() { ended <- c.read() }()
	isOpen := true
	for _, s := range d.Steps {
		if err := c.step(s); err != nil {
			return nil, err
		}
		isOpen = isOpen && !s.KeepOpen && !s.HalfClose && !s.Leave
	}
	if isOpen {
		_ = c.stream.CloseSend() // which never fails
	}
	outcome := map[string]any{"stream": failureOf(status.Convert(<-ended))}
	if c.call != nil {
		outcome["call"] = c.call
	}
	for label, record := range c.records {
		outcome[strconv.FormatUint(label, 10)] = record.result
	}
	return outcome, nil
}

func (c *wireCase) open(ctx context.Context, d description) (err error) {
	c.ctx, c.cancel = context.WithCancel(ctx)
	if d.Deadline > 0 {
		c.ctx, c.cancel = context.WithTimeout(ctx, time.Duration(d.Deadline*float64(time.Second)))
	}
	for key, value := range d.Metadata {
		if strings.HasSuffix(key, "-bin") {
			bytes, err := base64.StdEncoding.DecodeString(value)
			if err != nil {
				return err
			}
			value = string(bytes)
		}
		c.ctx = metadata.AppendToOutgoingContext(c.ctx, key, value)
	}
	c.stream, err = pb.NewTokenizerServiceClient(c.conn).GenerateText(c.ctx)
	return err
}

func (c *wireCase) step(s step) error {
	switch {
	case s.Submit != nil:
		return c.submit(*s.Submit, s)
	case s.Cancel != nil:
		cancel := &pb.GenerateTextRequest_Cancel{Cancel: &pb.Cancel{RequestId: *s.Cancel}}
		return c.stream.Send(&pb.GenerateTextRequest{Message: cancel})
	case s.Credit != nil:
		credit := &pb.GenerateTextRequest_Credit{Credit: &pb.Credit{RequestId: *s.Credit, Tokens: s.Tokens}}
		return c.stream.Send(&pb.GenerateTextRequest{Message: credit})
	case s.SayNothing:
		return c.stream.Send(&pb.GenerateTextRequest{})
	case s.Wait != nil:
		return c.record(*s.Wait).wait(c.ctx, s.For)
	case s.HalfClose:
		return c.stream.CloseSend()
	case s.Leave:
		c.cancel()
	case s.Call != "":
		err := c.conn.Invoke(c.ctx, service+s.Call, &emptypb.Empty{}, &emptypb.Empty{})
		c.call = failureOf(status.Convert(err))
	case !s.KeepOpen:
		return fmt.Errorf("no such step: %+v", s)
	}
	return nil
}

func (c *wireCase) submit(first uint64, s step) error {
	for label := first; label < first+s.count(); label++ {
		id := label
		if s.ID != nil {
			id = *s.ID
		}
		c.mu.Lock()
		c.labels[id] = label
		c.mu.Unlock()
		c.record(label)
		submit := &pb.GenerateTextRequest_Submit{Submit: s.Params.submit(id, s.Text)}
		if err := c.stream.Send(&pb.GenerateTextRequest{Message: submit}); err != nil {
			return err
		}
	}
	return nil
}

// record returns the record of a label, made where there is none.
func (c *wireCase) record(label uint64) *record {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.records[label] == nil {
		c.records[label] = newRecord("")
	}
	return c.records[label]
}

// read takes every update until the stream has ended, and returns how it did.
func (c *wireCase) read() error {
	for {
		response, err := c.stream.Recv()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		for _, update := range response.GetUpdates() {
			if err := c.take(update); err != nil {
				return err
			}
		}
	}
}

// take notes an update, held against the contract.
func (c *wireCase) take(update *pb.Update) error {
	c.mu.Lock()
	label, known := c.labels[update.GetRequestId()]
	c.mu.Unlock()
	if !known {
		label = update.GetRequestId()
	}
	r := c.record(label)
	if due := c.expected[label]; update.GetSequence() != due || r.result.End != nil {
		return status.Errorf(codes.DataLoss, "update %d of request %d came when %d was due", update.GetSequence(), label, due)
	}
	c.expected[label]++
	switch event := update.GetEvent().(type) {
	case *pb.Update_Accepted:
		return r.saw(c.ctx, "accepted")
	case *pb.Update_Delta:
		r.add(event.Delta.GetText(), int(event.Delta.GetNumTokens()))
		return r.saw(c.ctx, "delta")
	case *pb.Update_Finished:
		finish(r, event.Finished)
	}
	return nil
}

func finish(r *record, finished *pb.Finished) {
	end := strings.TrimPrefix(finished.GetReason().String(), "FINISH_REASON_")
	if finished.GetError() == nil {
		r.finish(end, nil)
		return
	}
	r.finish(end, failureOf(status.FromProto(finished.GetError())))
}
