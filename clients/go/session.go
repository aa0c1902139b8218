package clforge

import (
	"context"
	"errors"
	"io"
	"iter"
	"sync"
	"time"

	pb "clforge.dev/clforge/clforgev1"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
)

const (
	defaultWindow = 256
	goodbye       = time.Second // for what an idle session has not sent yet when it is closed
)

// Session is many requests on one stream. Any number of goroutines may use it.
//
// Credits are handled inside: what a request has not read yet is bounded by the window, and a reader that stops reading stops
// the server's work on its request, and on no other. When the stream ends early, every request returns the reason, and so
// does every later Submit: open a new session then.
type Session struct {
	target      string
	window      int
	retryBudget time.Duration
	ctx         context.Context
	cancel      context.CancelFunc
	stream      grpc.BidiStreamingClient[pb.GenerateTextRequest, pb.GenerateTextResponse]
	tasks       sync.WaitGroup

	mu       sync.Mutex
	out      outgoing
	requests map[uint64]*Request // those with a choice that has not ended
	lastID   uint64
	failure  error // why the session ended; nil while it lives
}

// SessionOption changes a Session.
type SessionOption func(*Session)

// WithWindow sets how many unread tokens of a choice the server may send ahead, at least 1. Default 256.
func WithWindow(tokens int) SessionOption {
	return func(s *Session) { s.window = tokens }
}

// NewSession opens a stream. The context bounds the session's whole life: when it ends, so do the session and its requests.
// Close the session to free it.
func (c *Client) NewSession(ctx context.Context, options ...SessionOption) (*Session, error) {
	s := &Session{
		target:      c.target,
		window:      defaultWindow,
		retryBudget: c.retryBudget,
		out:         outgoing{change: make(chan struct{})},
		requests:    make(map[uint64]*Request),
	}
	for _, option := range options {
		option(s)
	}
	if s.window < 1 || s.window > 1<<30 {
		return nil, invalid("window", "is %d; must be in [1, 2^30] tokens", s.window)
	}
	s.ctx, s.cancel = context.WithCancel(ctx)
	stream, err := c.stub.GenerateText(s.ctx)
	if err != nil {
		s.cancel()
		return nil, errorFromRPC(ctx, err, c.target, false)
	}
	s.stream = stream
	s.tasks.Add(2)
	go s.write()
	go s.read()
	return s, nil
}

// Close cancels the requests that still run and ends the stream.
func (s *Session) Close() error {
	s.mu.Lock()
	idle := len(s.requests) == 0
	s.mu.Unlock()
	s.end(&ConnectionLostError{Target: s.target, Err: errors.New("this session was closed")})
	if idle {
		timer := time.AfterFunc(goodbye, s.cancel)
		defer timer.Stop()
	} else {
		s.cancel()
	}
	s.tasks.Wait()
	s.cancel()
	return nil
}

// Generate is Client.Generate on this session's stream.
func (s *Session) Generate(ctx context.Context, prompt Prompt, options ...GenerateOption) iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		submit, numChoices, err := s.newSubmit(prompt, options)
		if err != nil {
			yield(nil, err)
			return
		}
		r := newRetries(s.retryBudget, submit.GetParams().GetTimeout().AsDuration())
		r.allowed = s.alive
		retryEvents(ctx, r, func() iter.Seq2[Event, error] {
			attempt := proto.CloneOf(submit) // the one before may not be sent yet
			attempt.Params.Timeout = r.timeoutLeft()
			request, err := s.start(ctx, attempt, numChoices)
			if err != nil {
				return func(yield func(Event, error) bool) { yield(nil, err) }
			}
			return request.Events(ctx)
		}, yield)
	}
}

// Submit starts a request without reading or retrying it. It waits, until the context ends, while the server does not take
// what is sent to it; the context does not bound the request.
func (s *Session) Submit(ctx context.Context, prompt Prompt, options ...GenerateOption) (*Request, error) {
	submit, numChoices, err := s.newSubmit(prompt, options)
	if err != nil {
		return nil, err
	}
	return s.start(ctx, submit, numChoices)
}

func (s *Session) newSubmit(prompt Prompt, options []GenerateOption) (*pb.TextSubmit, int, error) {
	p, kind, err := parse(prompt, options)
	if err != nil {
		return nil, 0, err
	}
	p.generation.InitialCredit = proto.Uint32(uint32(s.window))
	submit := &pb.TextSubmit{Prompt: kind, Params: p.generation, Model: p.model}
	return submit, p.numChoices(), nil
}

// start sends submit under a new id. Ids must reach the server in order: none is taken before there is room.
func (s *Session) start(ctx context.Context, submit *pb.TextSubmit, numChoices int) (*Request, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.failure == nil && !s.out.hasRoom() {
		if err := s.awaitChange(ctx); err != nil {
			return nil, err
		}
	}
	if s.failure != nil {
		return nil, s.failure
	}
	s.lastID++
	submit.RequestId = s.lastID
	request := newRequest(s, s.lastID, numChoices)
	s.requests[request.id] = request
	s.out.put(&pb.GenerateTextRequest{Message: &pb.GenerateTextRequest_Submit{Submit: submit}})
	return request, nil
}

// awaitChange lets go of s.mu until the queue has changed or the session or ctx has ended; ctx's error in that case.
func (s *Session) awaitChange(ctx context.Context) error {
	change := s.out.change
	s.mu.Unlock()
	defer s.mu.Lock()
	select {
	case <-change:
		return nil
	case <-ctx.Done():
		return errorFromContext(ctx)
	}
}

func (s *Session) alive() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failure == nil
}

func (s *Session) send(message *pb.GenerateTextRequest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failure == nil {
		s.out.put(message)
	}
}

// forget tells whether the request was still live.
func (s *Session) forget(request *Request) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, live := s.requests[request.id]
	delete(s.requests, request.id)
	return live
}

// write sends what is outgoing. A write that fails tells nothing: the reader learns why the stream ended.
func (s *Session) write() {
	defer s.tasks.Done()
	for message := s.next(); message != nil; message = s.next() {
		if s.stream.Send(message) != nil {
			return
		}
	}
	_ = s.stream.CloseSend() // which never fails
}

// next returns the next message to send, nil once the session has ended and all are sent.
func (s *Session) next() *pb.GenerateTextRequest {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		if message := s.out.pop(); message != nil || s.failure != nil {
			return message
		}
		_ = s.awaitChange(context.Background())
	}
}

// read hands each update to its request until the stream ends.
func (s *Session) read() {
	defer s.tasks.Done()
	defer s.cancel()
	for answered := false; ; answered = true {
		response, err := s.stream.Recv()
		switch {
		case err == io.EOF:
			s.end(&ConnectionLostError{Target: s.target, Err: errors.New("the server ended the stream")})
			return
		case err != nil:
			s.end(errorFromRPC(s.ctx, err, s.target, answered))
			return
		}
		for _, update := range response.GetUpdates() {
			s.mu.Lock()
			request := s.requests[update.GetRequestId()]
			s.mu.Unlock()
			if request != nil {
				request.arrive(update)
			}
		}
	}
}

// end fails what still runs, and all that comes later, with reason; the first reason counts.
func (s *Session) end(reason error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failure == nil {
		s.failure = reason
	}
	for _, request := range s.requests {
		request.inbox.fail(s.failure)
	}
	clear(s.requests)
	s.out.wake()
}
