package clforge_test

import (
	"context"
	"iter"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"clforge.dev/clforge"
	"clforge.dev/clforge/clforgetest"
	pb "clforge.dev/clforge/clforgev1"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"
)

const patience = 20 * time.Second // a test that waits longer has failed

func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

// newServer answers every prompt by its words, over and over, numWords of them.
func newServer(t testing.TB, numWords int, options ...clforgetest.Option) *clforgetest.Server {
	server := clforgetest.NewServer(func(prompt string) []string { return cycle(prompt, numWords) }, options...)
	t.Cleanup(server.Close)
	return server
}

func cycle(prompt string, numWords int) []string {
	words := strings.Fields(prompt)
	pieces := make([]string, numWords)
	for i := range pieces {
		pieces[i] = words[i%len(words)] + " "
	}
	return pieces
}

func newClient(t testing.TB, server *clforgetest.Server, options ...clforge.ClientOption) *clforge.Client {
	client := server.Client(options...)
	t.Cleanup(func() { _ = client.Close() })
	return client
}

func newSession(t testing.TB, client *clforge.Client, options ...clforge.SessionOption) *clforge.Session {
	session, err := client.NewSession(t.Context(), options...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = session.Close() })
	return session
}

// collect returns the text, the last Finished and the error.
func collect(events iter.Seq2[clforge.Event, error]) (string, clforge.Finished, error) {
	var text strings.Builder
	var finished clforge.Finished
	for event, err := range events {
		if err != nil {
			return text.String(), finished, err
		}
		switch event := event.(type) {
		case clforge.Delta:
			text.WriteString(event.Text)
		case clforge.Finished:
			finished = event
		}
	}
	return text.String(), finished, nil
}

func failure(code codes.Code, message string, details ...protoadapt.MessageV1) *status.Status {
	details = append(details, &errdetails.ErrorInfo{Reason: "TESTED", Domain: "clforge"})
	result, err := status.New(code, message).WithDetails(details...)
	if err != nil {
		panic(err)
	}
	return result
}

func retryAfter(delay time.Duration) protoadapt.MessageV1 {
	return &errdetails.RetryInfo{RetryDelay: durationpb.New(delay)}
}

// eventually fails the test unless the condition becomes true.
func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !condition(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never became true: %s", what)
		}
	}
}

// scripted is a server whose streams do what the test says.
type scripted struct {
	pb.UnimplementedTokenizerServiceServer
	generate func(grpc.ServerStreamingServer[pb.GenerateResponse]) error
	text     func(grpc.BidiStreamingServer[pb.GenerateTextRequest, pb.GenerateTextResponse]) error
}

func (s *scripted) Generate(_ *pb.GenerateRequest, stream grpc.ServerStreamingServer[pb.GenerateResponse]) error {
	return s.generate(stream)
}

func (s *scripted) GenerateText(stream grpc.BidiStreamingServer[pb.GenerateTextRequest, pb.GenerateTextResponse]) error {
	return s.text(stream)
}

// start serves the script; the server is returned to be stopped in the midst of it.
func (s *scripted) start(t *testing.T) (*clforge.Client, *grpc.Server) {
	server := grpc.NewServer()
	return serve(t, server, s), server
}

// serve serves until the test ends, and returns a client.
func serve(t *testing.T, server *grpc.Server, service pb.TokenizerServiceServer) *clforge.Client {
	listener := bufconn.Listen(1 << 20)
	pb.RegisterTokenizerServiceServer(server, service)
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(server.Stop)
	dial := func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }
	client, err := clforge.New("passthrough:///scripted", clforge.WithDialOptions(grpc.WithContextDialer(dial)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	return client
}

func delta(sequence uint32, text string) *pb.Update {
	return &pb.Update{RequestId: 1, Sequence: sequence, Event: &pb.Update_Delta{Delta: &pb.Delta{Text: text, NumTokens: 1}}}
}

// inParallel runs the function for each of 0 … n-1 in a goroutine of its own, and returns when all have ended.
func inParallel(n int, run func(int)) {
	var running sync.WaitGroup
	for i := range n {
		running.Add(1)
		go func() {
			defer running.Done()
			run(i)
		}()
	}
	running.Wait()
}
