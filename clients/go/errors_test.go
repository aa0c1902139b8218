package clforge_test

import (
	"errors"
	"io"
	"testing"
	"time"

	"clforge.dev/clforge"
	pb "clforge.dev/clforge/clforgev1"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Every status code is its kind of StatusError, and no other, with what its details say.
func TestEachCodeHasItsKind(t *testing.T) {
	kinds := []error{
		clforge.ErrInvalidRequest, clforge.ErrNotFound, clforge.ErrFailedPrecondition, clforge.ErrOverloaded, clforge.ErrUnavailable,
		clforge.ErrDeadline, clforge.ErrCancelled, clforge.ErrAuthentication, clforge.ErrUnimplemented, clforge.ErrServer,
		clforge.ErrPermissionDenied,
	}
	server := newServer(t, 1)
	client := newClient(t, server)
	for code, kind := range map[codes.Code]error{
		codes.InvalidArgument: clforge.ErrInvalidRequest, codes.OutOfRange: clforge.ErrInvalidRequest, codes.NotFound: clforge.ErrNotFound,
		codes.FailedPrecondition: clforge.ErrFailedPrecondition, codes.AlreadyExists: clforge.ErrFailedPrecondition,
		codes.Aborted: clforge.ErrFailedPrecondition, codes.ResourceExhausted: clforge.ErrOverloaded, codes.Unavailable: clforge.ErrUnavailable,
		codes.DeadlineExceeded: clforge.ErrDeadline, codes.Canceled: clforge.ErrCancelled, codes.Unauthenticated: clforge.ErrAuthentication,
		codes.PermissionDenied: clforge.ErrPermissionDenied, codes.Unimplemented: clforge.ErrUnimplemented, codes.Internal: clforge.ErrServer,
		codes.Unknown: clforge.ErrServer, codes.DataLoss: clforge.ErrServer,
	} {
		details := &errdetails.BadRequest{FieldViolations: []*errdetails.BadRequest_FieldViolation{{Field: "params.top_p"}}}
		inBand, rpc := failure(code, "no", details), failure(code, "no", details)
		server.Fail(inBand, rpc)
		_, _, streamed := collect(client.Generate(testContext(t), clforge.Text("a")))
		_, whole := client.Complete(testContext(t), clforge.Text("a"))
		for _, err := range []error{streamed, whole} {
			var refused *clforge.StatusError
			var any clforge.Error
			if !errors.As(err, &refused) || !errors.As(err, &any) || status.Code(err) != code {
				t.Errorf("%v: error is %#v", code, err)
				continue
			}
			if refused.Error() != "no" || refused.Reason != "TESTED" || refused.Field != "params.top_p" {
				t.Errorf("%v: error is %+v", code, refused)
			}
			for _, other := range kinds {
				isToo := other == clforge.ErrAuthentication && code == codes.PermissionDenied
				if errors.Is(err, other) != (other == kind || isToo) {
					t.Errorf("%v: errors.Is(…, %v) is %v", code, other, !errors.Is(err, other))
				}
			}
		}
	}
}

// A refused request is sent again when the server says when, by every door.
func TestRetryInfoInvitesToTryAgain(t *testing.T) {
	server := newServer(t, 2)
	client := newClient(t, server)
	session := newSession(t, client)
	busy := failure(codes.ResourceExhausted, "full", retryAfter(time.Millisecond))
	for name, generate := range map[string]func() (string, error){
		"client": func() (string, error) {
			text, _, err := collect(client.Generate(testContext(t), clforge.Text("a")))
			return text, err
		},
		"session": func() (string, error) {
			text, _, err := collect(session.Generate(testContext(t), clforge.Text("a")))
			return text, err
		},
		"complete": func() (string, error) {
			answer, err := client.Complete(testContext(t), clforge.Text("a"))
			if err != nil {
				return "", err
			}
			return answer.Text(), nil
		},
	} {
		server.Fail(busy, busy)
		if text, err := generate(); err != nil || text != "a a " {
			t.Errorf("%s: got %q, %v", name, text, err)
		}
	}
}

// Without RetryInfo, or when its time is beyond the budget or the request's timeout, the first refusal is the answer.
func TestNoRetryWithoutInvitationOrBeyondTheBudget(t *testing.T) {
	server := newServer(t, 1)
	patient, hasty := newClient(t, server), newClient(t, server, clforge.WithRetryBudget(0))
	later := failure(codes.ResourceExhausted, "later", retryAfter(time.Minute))
	for _, c := range []struct {
		client  *clforge.Client
		refusal *status.Status
		options []clforge.GenerateOption
	}{
		{patient, failure(codes.Unavailable, "draining"), nil},
		{patient, later, nil},
		{patient, failure(codes.ResourceExhausted, "soon", retryAfter(time.Second)), []clforge.GenerateOption{clforge.WithTimeout(time.Second / 2)}},
		{hasty, failure(codes.ResourceExhausted, "soon", retryAfter(time.Millisecond)), nil},
	} {
		server.Fail(c.refusal)
		_, _, err := collect(c.client.Generate(testContext(t), clforge.Text("a"), c.options...))
		if err == nil || err.Error() != c.refusal.Message() {
			t.Errorf("%v: error is %v", c.refusal, err)
		}
	}
	server.Fail(later)
	_, err := patient.Complete(testContext(t), clforge.Text("a"))
	var refused *clforge.StatusError
	if !errors.As(err, &refused) {
		t.Fatal(err)
	}
	if delay, invited := refused.RetryAfter(); !invited || delay != time.Minute {
		t.Errorf("RetryAfter is %v, %v", delay, invited)
	}
}

// Once a token was delivered nothing is tried again, whatever the server says.
func TestNoRetryAfterTheFirstToken(t *testing.T) {
	attempts := 0
	script := &scripted{generate: func(stream grpc.ServerStreamingServer[pb.GenerateResponse]) error {
		attempts++
		_ = stream.Send(&pb.GenerateResponse{Updates: []*pb.Update{delta(0, "a")}})
		return failure(codes.Unavailable, "draining", retryAfter(time.Millisecond)).Err()
	}}
	client, _ := script.start(t)
	text, _, err := collect(client.Generate(testContext(t), clforge.Text("a")))
	if text != "a" || attempts != 1 || !errors.Is(err, clforge.ErrUnavailable) {
		t.Errorf("got %q after %d attempts, %v", text, attempts, err)
	}
}

// A server that is gone in the midst of an answer is a lost connection, not an unreachable server.
func TestServerGoneMidStreamIsConnectionLost(t *testing.T) {
	script := &scripted{generate: func(stream grpc.ServerStreamingServer[pb.GenerateResponse]) error {
		_ = stream.Send(&pb.GenerateResponse{Updates: []*pb.Update{delta(0, "a")}})
		<-stream.Context().Done()
		return nil
	}}
	client, server := script.start(t)
	var last error
	for event, err := range client.Generate(testContext(t), clforge.Text("a")) {
		if event != nil {
			go server.Stop()
		}
		last = err
	}
	var lost *clforge.ConnectionLostError
	if !errors.As(last, &lost) {
		t.Errorf("error is %#v", last)
	}
}

// The same holds for every request of a session, read or not.
func TestServerGoneMidSessionIsConnectionLost(t *testing.T) {
	script := &scripted{text: func(stream grpc.BidiStreamingServer[pb.GenerateTextRequest, pb.GenerateTextResponse]) error {
		_ = stream.Send(&pb.GenerateTextResponse{Updates: []*pb.Update{delta(0, "a")}})
		<-stream.Context().Done()
		return nil
	}}
	client, server := script.start(t)
	session := newSession(t, client)
	first, err := session.Submit(testContext(t), clforge.Text("a"))
	if err != nil {
		t.Fatal(err)
	}
	second, err := session.Submit(testContext(t), clforge.Text("a"))
	if err != nil {
		t.Fatal(err)
	}
	for event := range first.Events(testContext(t)) {
		if event != nil {
			go server.Stop()
		}
	}
	_, _, err = collect(second.Events(testContext(t)))
	var lost *clforge.ConnectionLostError
	if !errors.As(err, &lost) {
		t.Errorf("error is %#v", err)
	}
}

// What a server must not say is a ProtocolError: a gap, an end before the last choice's, an update for no choice or of no event.
func TestBrokenProtocolIsAnError(t *testing.T) {
	finished := &pb.Update{Choice: 0, Sequence: 1, Event: &pb.Update_Finished{Finished: &pb.Finished{Reason: 99}}}
	for name, updates := range map[string][]*pb.Update{
		"gap":            {delta(1, "a")},
		"early end":      {delta(0, "a")},
		"no such choice": {{Choice: 3, Event: &pb.Update_Delta{Delta: &pb.Delta{}}}},
		"no event":       {{}},
		"reason":         {delta(0, "a"), finished},
	} {
		script := &scripted{generate: func(stream grpc.ServerStreamingServer[pb.GenerateResponse]) error {
			return stream.Send(&pb.GenerateResponse{Updates: updates})
		}}
		client, _ := script.start(t)
		_, _, err := collect(client.Generate(testContext(t), clforge.Text("a")))
		var broken *clforge.ProtocolError
		if !errors.As(err, &broken) {
			t.Errorf("%s: error is %v", name, err)
		}
	}
}

// A method that the server lacks is ErrUnimplemented.
func TestUnknownMethodIsUnimplemented(t *testing.T) {
	client, _ := (&scripted{}).start(t)
	if _, err := client.Encode(testContext(t), "a"); !errors.Is(err, clforge.ErrUnimplemented) {
		t.Errorf("error is %v", err)
	}
}

// When the stream ends early every request of the session, and every later one, says why.
func TestStreamsEndFailsEveryRequest(t *testing.T) {
	for name, ending := range map[string]error{"ok": nil, "status": failure(codes.Unauthenticated, "revoked", retryAfter(0)).Err()} {
		script := &scripted{text: func(stream grpc.BidiStreamingServer[pb.GenerateTextRequest, pb.GenerateTextResponse]) error {
			for range 2 {
				if _, err := stream.Recv(); err != nil && err != io.EOF {
					return err
				}
			}
			return ending
		}}
		client, _ := script.start(t)
		session := newSession(t, client)
		first, _ := session.Submit(testContext(t), clforge.Text("a"))
		_, _, second := collect(session.Generate(testContext(t), clforge.Text("a")))
		_, _, err := collect(first.Events(testContext(t)))
		_, third := session.Submit(testContext(t), clforge.Text("a"))
		for _, err := range []error{err, second, third} {
			var lost *clforge.ConnectionLostError
			if ending == nil && !errors.As(err, &lost) || ending != nil && !errors.Is(err, clforge.ErrAuthentication) {
				t.Errorf("%s: error is %v", name, err)
			}
		}
	}
}
