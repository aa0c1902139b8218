package clforge_test

import (
	"errors"
	"testing"
	"time"

	"clforge.dev/clforge"
	"clforge.dev/clforge/clforgetest"
	pb "clforge.dev/clforge/clforgev1"
	"google.golang.org/grpc"
)

// A request that waits for credit is listed as paused, generates no further token, and is ended by its id from another call.
func TestARequestIsListedAndCancelledByItsID(t *testing.T) {
	server := newServer(t, 1_000_000)
	client := newClient(t, server)
	session := newSession(t, client, clforge.WithWindow(2))
	request, err := session.Submit(testContext(t), clforge.Text("abc"), clforge.WithPriority(7))
	if err != nil {
		t.Fatal(err)
	}
	var requests []clforge.RequestInfo
	eventually(t, "the request is paused", func() bool {
		requests, err = client.ListRequests(testContext(t))
		return err != nil || len(requests) == 1 && requests[0].State == clforge.StatePaused
	})
	if err != nil || requests[0].NumGeneratedTokens != 2 || requests[0].NumPromptTokens != 3 || requests[0].Priority != 7 {
		t.Fatalf("got %+v, %v", requests, err)
	}
	if err := client.CancelRequest(testContext(t), requests[0].GlobalID); err != nil {
		t.Fatal(err)
	}
	_, finished, err := collect(request.Events(testContext(t)))
	if err != nil || finished.Reason != clforge.FinishCancelled {
		t.Errorf("got %+v, %v", finished, err)
	}
	eventually(t, "no request is live", func() bool { return server.NumLive() == 0 })
	if err := client.CancelRequest(testContext(t), requests[0].GlobalID); !errors.Is(err, clforge.ErrNotFound) {
		t.Errorf("error is %v", err)
	}
}

// The plain door's request has an id of its own, which Accepted tells, and can be cancelled by it.
func TestThePlainDoorsRequestIsCancelledByItsID(t *testing.T) {
	client := newClient(t, newServer(t, 1_000_000, clforgetest.WithPace(time.Millisecond)))
	var last clforge.Event
	for event, err := range client.Generate(testContext(t), clforge.Text("a")) {
		if err != nil {
			t.Fatal(err)
		}
		if accepted, ok := event.(clforge.Accepted); ok {
			if err := client.CancelRequest(testContext(t), accepted.GlobalID); err != nil {
				t.Fatal(err)
			}
		}
		last = event
	}
	if finished, ok := last.(clforge.Finished); !ok || finished.Reason != clforge.FinishCancelled {
		t.Errorf("last event is %#v", last)
	}
}

// Load tells one load and WatchLoad goes on telling; leaving the loop, and the server's end, end it.
func TestLoadIsToldOnceOrWatched(t *testing.T) {
	server := newServer(t, 3)
	client := newClient(t, server)
	if load, err := client.Load(testContext(t)); err != nil || load != (clforge.Load{}) {
		t.Errorf("got %+v, %v", load, err)
	}
	if _, _, err := collect(client.Generate(testContext(t), clforge.Text("a"))); err != nil {
		t.Fatal(err)
	}
	numTold := 0
	var last error
	for load, err := range client.WatchLoad(testContext(t)) {
		if err == nil && load.GenerationTokens != 3 {
			t.Errorf("got %+v", load)
		}
		if numTold++; numTold == 2 {
			server.Close()
		}
		last = err
	}
	var lost *clforge.ConnectionLostError
	if numTold < 3 || !errors.As(last, &lost) {
		t.Errorf("told %d times; error is %v", numTold, last)
	}
}

type loadedServer struct {
	pb.UnimplementedTokenizerServiceServer
}

func (*loadedServer) WatchLoad(_ *pb.WatchLoadRequest, stream grpc.ServerStreamingServer[pb.WatchLoadResponse]) error {
	return stream.Send(&pb.WatchLoadResponse{Load: &pb.Load{NumRequestsWaiting: 1, NumBlocks: 8, NumUsedBlocks: 2, BlockSize: 32}})
}

// Every figure has its place, and a watch that a draining server ends is no error.
func TestLoadTellsTheKVCache(t *testing.T) {
	client := serve(t, grpc.NewServer(), &loadedServer{})
	for load, err := range client.WatchLoad(testContext(t)) {
		want := clforge.Load{NumRequestsWaiting: 1, NumBlocks: 8, NumUsedBlocks: 2, BlockSize: 32}
		if err != nil || load != want || load.KVUsage() != 0.25 {
			t.Errorf("got %+v, %v", load, err)
		}
	}
	if (clforge.Load{}).KVUsage() != 0 {
		t.Error("an empty cache is in use")
	}
}
