package clforge_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"clforge.dev/clforge"
	"clforge.dev/clforge/clforgetest"
	pb "clforge.dev/clforge/clforgev1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
)

// Many requests, from many goroutines, share one stream, and each gets its own answer.
func TestSessionCarriesManyRequests(t *testing.T) {
	session := newSession(t, newClient(t, newServer(t, 100)), clforge.WithWindow(8))
	inParallel(256, func(i int) {
		prompt := fmt.Sprintf("p%d", i)
		text, finished, err := collect(session.Generate(testContext(t), clforge.Text(prompt)))
		if err != nil || finished.Reason != clforge.FinishStop || text != strings.Repeat(prompt+" ", 100) {
			t.Errorf("%s: got %q, %+v, %v", prompt, text, finished, err)
		}
	})
}

// The credits of a request with several choices follow the choice that was read least, and never run dry.
func TestSessionGrantsToEveryChoice(t *testing.T) {
	session := newSession(t, newClient(t, newServer(t, 50)), clforge.WithWindow(1))
	text, _, err := collect(session.Generate(testContext(t), clforge.Text("a"), clforge.WithChoices(3)))
	if err != nil || text != strings.Repeat("a ", 150) {
		t.Errorf("got %q, %v", text, err)
	}
}

// A reader that stops reading grants no credit: the server stops after the window, and goes on when reading goes on; the
// stream's other requests are not held up.
func TestSlowReaderStopsTheServer(t *testing.T) {
	const window, numTokens = 16, 1000
	server := newServer(t, numTokens)
	session := newSession(t, newClient(t, server), clforge.WithWindow(window))
	slow, err := session.Submit(testContext(t), clforge.Text("a"))
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the window is used up", func() bool { return server.NumSent() == window })
	if text, _, err := collect(session.Generate(testContext(t), clforge.Text("b"))); err != nil || len(text) != 2*numTokens {
		t.Errorf("the other request got %d bytes, %v", len(text), err)
	}
	time.Sleep(20 * time.Millisecond)
	if sent := server.NumSent() - numTokens; sent != window {
		t.Errorf("%d tokens were sent to a reader that does not read; the window is %d", sent, window)
	}
	numRead := 0
	for event, err := range slow.Events(testContext(t)) {
		if err != nil {
			t.Fatal(err)
		}
		if _, isDelta := event.(clforge.Delta); isDelta {
			numRead++
		}
		if numRead == 100 {
			time.Sleep(20 * time.Millisecond)
			if unread := server.NumSent() - numTokens - numRead; unread > window {
				t.Fatalf("%d tokens are unread; the window is %d", unread, window)
			}
		}
	}
	if numRead != numTokens {
		t.Errorf("the slow reader got %d of %d tokens", numRead, numTokens)
	}
}

// Cancel ends a request with FinishCancelled, before its first token as after; one that has ended stays as it was.
func TestCancelFinishesTheRequest(t *testing.T) {
	server := newServer(t, 100, clforgetest.WithPace(time.Millisecond))
	session := newSession(t, newClient(t, server))
	for _, after := range []int{0, 1} {
		request, err := session.Submit(testContext(t), clforge.Text("a"))
		if err != nil {
			t.Fatal(err)
		}
		var last clforge.Event
		numEvents := 0
		for event, err := range request.Events(testContext(t)) {
			if err != nil {
				t.Fatal(err)
			}
			if numEvents == after {
				request.Cancel()
			}
			numEvents++
			last = event
		}
		if finished, ok := last.(clforge.Finished); !ok || finished.Reason != clforge.FinishCancelled {
			t.Errorf("cancelled after event %d, the last event is %#v", after, last)
		}
	}
	request, _ := session.Submit(testContext(t), clforge.Text("a"))
	_, finished, err := collect(request.Events(testContext(t)))
	request.Cancel()
	if err != nil || finished.Reason != clforge.FinishStop {
		t.Errorf("got %+v, %v", finished, err)
	}
}

// Leaving the loop, or the reader's context, cancels the request alone; what is read after that is an error, not a hang.
func TestLeavingARequestCancelsItAlone(t *testing.T) {
	server := newServer(t, 1_000_000, clforgetest.WithPace(time.Millisecond))
	session := newSession(t, newClient(t, server))
	request, err := session.Submit(testContext(t), clforge.Text("a"))
	if err != nil {
		t.Fatal(err)
	}
	for range request.Events(testContext(t)) {
		break
	}
	eventually(t, "the server's request has ended", func() bool { return server.NumLive() == 0 })
	if _, _, err := collect(request.Events(testContext(t))); err == nil {
		t.Error("a request that was left ended well")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, _, err := collect(session.Generate(ctx, clforge.Text("a"))); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error is %v", err)
	}
	eventually(t, "the server's request has ended", func() bool { return server.NumLive() == 0 })
	if text, _, err := collect(session.Generate(testContext(t), clforge.Text("b"), clforge.WithMaxTokens(1))); err != nil || text != "b " {
		t.Errorf("got %q, %v", text, err)
	}
}

// Closing a session, and the end of its context, free the server's requests and fail those that wait.
func TestClosingASessionFreesItsRequests(t *testing.T) {
	server := newServer(t, 1_000_000, clforgetest.WithPace(time.Millisecond))
	client := newClient(t, server)
	for _, leave := range []func(*clforge.Session, context.CancelFunc){
		func(session *clforge.Session, _ context.CancelFunc) { _ = session.Close() },
		func(_ *clforge.Session, cancel context.CancelFunc) { cancel() },
	} {
		ctx, cancel := context.WithCancel(testContext(t))
		defer cancel()
		session, err := client.NewSession(ctx)
		if err != nil {
			t.Fatal(err)
		}
		request, err := session.Submit(ctx, clforge.Text("a"))
		if err != nil {
			t.Fatal(err)
		}
		eventually(t, "the server's request runs", func() bool { return server.NumLive() == 1 })
		leave(session, cancel)
		var ours clforge.Error
		if _, _, err := collect(request.Events(t.Context())); !errors.As(err, &ours) {
			t.Errorf("error is %v", err)
		}
		eventually(t, "the server's request has ended", func() bool { return server.NumLive() == 0 })
	}
}

// While the server takes nothing, Submit waits for room no longer than its context, and Close does not hang.
func TestSubmitWaitsForRoomNoLongerThanItsContext(t *testing.T) {
	script := &scripted{text: func(stream grpc.BidiStreamingServer[pb.GenerateTextRequest, pb.GenerateTextResponse]) error {
		_ = stream.SendHeader(metadata.MD{})
		<-stream.Context().Done()
		return nil
	}}
	client, _ := script.start(t)
	session := newSession(t, client)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	var err error
	for err == nil {
		_, err = session.Submit(ctx, clforge.Text(strings.Repeat("a", 1<<16)))
	}
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error is %v", err)
	}
}

// A prompt too large for a message is refused alone, and the stream lives on.
func TestTooLargePromptLeavesTheStreamAlone(t *testing.T) {
	session := newSession(t, newClient(t, newServer(t, 1)))
	if _, err := session.Submit(testContext(t), clforge.Text(strings.Repeat("a", 16<<20))); !errors.Is(err, clforge.ErrInvalidRequest) {
		t.Errorf("error is %v", err)
	}
	if text, _, err := collect(session.Generate(testContext(t), clforge.Text("b"))); err != nil || text != "b " {
		t.Errorf("got %q, %v", text, err)
	}
}

// A window of no tokens is refused.
func TestWindowMustHoldAToken(t *testing.T) {
	client := newClient(t, newServer(t, 1))
	if _, err := client.NewSession(testContext(t), clforge.WithWindow(0)); !errors.Is(err, clforge.ErrInvalidRequest) {
		t.Errorf("error is %v", err)
	}
}
