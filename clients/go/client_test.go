package clforge_test

import (
	"context"
	"errors"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"clforge.dev/clforge"
	"clforge.dev/clforge/clforgetest"
	pb "clforge.dev/clforge/clforgev1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"
)

// Accepted comes first, then the text in pieces, then one Finished with its counts.
func TestGenerateYieldsTypedEvents(t *testing.T) {
	client := newClient(t, newServer(t, 3))
	var events []clforge.Event
	for event, err := range client.Generate(testContext(t), clforge.Text("a b"), clforge.WithSeed(7)) {
		if err != nil {
			t.Fatal(err)
		}
		events = append(events, event)
	}
	want := []clforge.Event{
		clforge.Delta{Text: "a ", NumTokens: 1}, clforge.Delta{Text: "b ", NumTokens: 1}, clforge.Delta{Text: "a ", NumTokens: 1},
	}
	if accepted, ok := events[0].(clforge.Accepted); !ok || accepted.Seed != 7 || accepted.NumPromptTokens != 3 {
		t.Errorf("first event is %#v", events[0])
	}
	for i, event := range events[1 : len(events)-1] {
		if got := event.(clforge.Delta); got.Text != want[i].(clforge.Delta).Text {
			t.Errorf("delta %d is %#v", i, got)
		}
	}
	finished, ok := events[len(events)-1].(clforge.Finished)
	if !ok || len(events) != 5 || finished.Reason != clforge.FinishStop || finished.Usage.DeliveredTokens != 3 {
		t.Errorf("events are %#v", events)
	}
}

// Complete returns each choice's whole text, and says when the length ended it.
func TestCompleteReturnsEveryChoice(t *testing.T) {
	client := newClient(t, newServer(t, 9))
	got, err := client.Complete(testContext(t), clforge.Text("x y"), clforge.WithChoices(2), clforge.WithMaxTokens(4))
	if err != nil {
		t.Fatal(err)
	}
	if len(got.Choices) != 2 || got.Text() != "x y x y " || got.Choices[1].Finished.Reason != clforge.FinishLength {
		t.Errorf("answer is %+v", got)
	}
}

// Chat sends the turns in order, and RenderChat shows the prompt that they become.
func TestChatSendsEveryTurn(t *testing.T) {
	client := newClient(t, newServer(t, 4))
	turns := []clforge.Message{clforge.System("be"), clforge.User("hi")}
	text, _, err := collect(client.Chat(testContext(t), turns))
	if err != nil || text != "system: be user: hi " {
		t.Errorf("got %q, %v", text, err)
	}
	rendered, err := client.RenderChat(testContext(t), clforge.Chat{Messages: turns})
	if err != nil || rendered.Text != "system: be\nuser: hi\n" || len(rendered.TokenIDs) != len(rendered.Text) {
		t.Errorf("got %+v, %v", rendered, err)
	}
}

// Decode gives back what Encode took, and token ids are a prompt like text.
func TestEncodeAndDecodeRoundTrip(t *testing.T) {
	client := newClient(t, newServer(t, 1))
	ids, err := client.Encode(testContext(t), "Grüße", clforge.WithAddSpecial(false))
	if err != nil {
		t.Fatal(err)
	}
	text, err := client.Decode(testContext(t), ids, clforge.WithSkipSpecial(false))
	if err != nil || text != "Grüße" {
		t.Errorf("got %q, %v", text, err)
	}
	if text, _, err := collect(client.Generate(testContext(t), clforge.TokenIDs(ids))); err != nil || text != "Grüße " {
		t.Errorf("got %q, %v", text, err)
	}
}

// Batches come in order, with offsets in characters where they are asked for.
func TestBatchesHaveOffsets(t *testing.T) {
	client := newClient(t, newServer(t, 1))
	plain, err := client.EncodeBatch(testContext(t), []string{"hé", ""})
	if err != nil || len(plain) != 2 || len(plain[0].TokenIDs) != 3 || len(plain[1].TokenIDs) != 0 || plain[0].Offsets != nil {
		t.Fatalf("got %+v, %v", plain, err)
	}
	expected := []clforge.Offset{{0, 1}, {1, 2}, {1, 2}}
	encoded, err := client.EncodeBatch(testContext(t), []string{"hé"}, clforge.WithEncodeOffsets())
	if err != nil || !slices.Equal(encoded[0].Offsets, expected) {
		t.Errorf("got %+v, %v", encoded, err)
	}
	ids := [][]uint32{{}, encoded[0].TokenIDs}
	decoded, err := client.DecodeBatch(testContext(t), ids, clforge.WithDecodeOffsets())
	if err != nil || decoded[0].Text != "" || decoded[1].Text != "hé" || !slices.Equal(decoded[1].Offsets, expected) {
		t.Errorf("got %+v, %v", decoded, err)
	}
	texts := []string{"a", "\xff"}
	var refused *clforge.StatusError
	if _, err := client.EncodeBatch(testContext(t), texts); !errors.As(err, &refused) || refused.Field != "texts[1]" {
		t.Errorf("error is %v", err)
	}
	long := []string{strings.Repeat("a", 16<<20)}
	if _, err := client.EncodeBatch(testContext(t), long); !errors.As(err, &refused) || refused.Field != "texts" {
		t.Errorf("error is %v", err)
	}
}

// What a server would fail to read is refused by name.
func TestDeeplyNestedObjectsAreRefused(t *testing.T) {
	client := newClient(t, newServer(t, 1))
	deep := map[string]any{}
	for range 30 {
		deep = map[string]any{"a": deep}
	}
	messages := []clforge.Message{clforge.User("hi")}
	if _, err := client.RenderChat(testContext(t), clforge.Chat{Messages: messages, TemplateKwargs: deep}); err != nil {
		t.Error(err)
	}
	deep = map[string]any{"a": []any{deep}}
	_, err := client.RenderChat(testContext(t), clforge.Chat{Messages: messages, TemplateKwargs: deep})
	var refused *clforge.StatusError
	if !errors.As(err, &refused) || !errors.Is(err, clforge.ErrInvalidRequest) || refused.Field != "template_kwargs" {
		t.Errorf("error is %v", err)
	}
}

// Two clients of one address have a connection each: a server of several processes gives each connection to one of them.
func TestClientsHaveConnectionsOfTheirOwn(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var peers sync.Map
	server := grpc.NewServer(grpc.UnaryInterceptor(
		func(ctx context.Context, request any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
			from, _ := peer.FromContext(ctx)
			peers.Store(from.Addr.String(), true)
			return handler(ctx, request)
		}))
	pb.RegisterTokenizerServiceServer(server, newServer(t, 1))
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(server.Stop)
	for range 2 {
		client, err := clforge.New(listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = client.Close() })
		for range 2 {
			if _, err := client.Encode(testContext(t), "a"); err != nil {
				t.Fatal(err)
			}
		}
	}
	connections := 0
	peers.Range(func(any, any) bool { connections++; return true })
	if connections != 2 {
		t.Errorf("%d connections", connections)
	}
}

// ModelInfo describes the model, and a server that answers is ready.
func TestModelInfoDescribesTheModel(t *testing.T) {
	client := newClient(t, newServer(t, 1))
	if err := client.WaitForReady(testContext(t)); err != nil {
		t.Fatal(err)
	}
	info, err := client.ModelInfo(testContext(t))
	if err != nil || info.Name != "clforgetest" || info.VocabSize != 256 {
		t.Errorf("got %+v, %v", info, err)
	}
}

// Leaving the loop, and cancelling the context, end the request at the server.
func TestLeavingTheLoopCancels(t *testing.T) {
	server := newServer(t, 1_000_000, clforgetest.WithPace(time.Millisecond))
	client := newClient(t, server)
	for event, err := range client.Generate(testContext(t), clforge.Text("a")) {
		if _, isDelta := event.(clforge.Delta); isDelta || err != nil {
			break
		}
	}
	eventually(t, "the server's request has ended", func() bool { return server.NumLive() == 0 })

	ctx, cancel := context.WithCancel(testContext(t))
	defer cancel()
	var last error
	for event, err := range client.Generate(ctx, clforge.Text("a")) {
		if _, isDelta := event.(clforge.Delta); isDelta {
			cancel()
		}
		last = err
	}
	if !errors.Is(last, context.Canceled) || !errors.Is(last, clforge.ErrCancelled) {
		t.Errorf("error is %v", last)
	}
	eventually(t, "the server's request has ended", func() bool { return server.NumLive() == 0 })
}

// The request's timeout ends it well, keeping what had come; the context's deadline is an error.
func TestTimeoutFinishesAndDeadlineFails(t *testing.T) {
	client := newClient(t, newServer(t, 1_000_000, clforgetest.WithPace(time.Millisecond)))
	_, finished, err := collect(client.Generate(testContext(t), clforge.Text("a"), clforge.WithTimeout(50*time.Millisecond)))
	if err != nil || finished.Reason != clforge.FinishDeadline {
		t.Errorf("got %+v, %v", finished, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, _, err = collect(client.Generate(ctx, clforge.Text("a")))
	if !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, clforge.ErrDeadline) {
		t.Errorf("error is %v", err)
	}
}

// A wrong address is one clear error, over TCP and over a Unix socket alike.
func TestNobodyThereIsUnreachable(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed := listener.Addr().String()
	_ = listener.Close()
	for _, target := range []string{closed, "unix:" + t.TempDir() + "/none.sock"} {
		client, err := clforge.New(target)
		if err != nil {
			t.Fatal(err)
		}
		_, err = client.ModelInfo(testContext(t))
		_ = client.Close()
		var unreachable *clforge.UnreachableError
		if !errors.As(err, &unreachable) || unreachable.Target != target {
			t.Errorf("%s: error is %v", target, err)
		}
	}
}

// WaitForReady connects once a server has come up at the address.
func TestWaitForReadyOutlastsTheServersStart(t *testing.T) {
	path := t.TempDir() + "/s.sock"
	client, err := clforge.New("unix:" + path)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	ready := make(chan error, 1)
	go func() { ready <- client.WaitForReady(testContext(t)) }()
	time.Sleep(20 * time.Millisecond)
	listener, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	pb.RegisterTokenizerServiceServer(server, newServer(t, 1))
	go func() { _ = server.Serve(listener) }()
	defer server.Stop()
	if err := <-ready; err != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	nobody, _ := clforge.New("unix:" + path + ".none")
	defer nobody.Close()
	if err := nobody.WaitForReady(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error is %v", err)
	}
}

// What cannot be sent is refused before anything is, and names its field.
func TestWhatCannotBeSentIsInvalid(t *testing.T) {
	client, err := clforge.New("127.0.0.1:1") // where nobody listens
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	bad := "\xff"
	for field, events := range map[string]struct {
		prompt  clforge.Prompt
		options []clforge.GenerateOption
	}{
		"text":            {clforge.Text(bad), nil},
		"prompt":          {nil, nil},
		"messages[0]":     {clforge.Chat{Messages: []clforge.Message{clforge.User(bad)}}, nil},
		"tools[0]":        {clforge.Chat{Tools: []map[string]any{{"a": make(chan int)}}}, nil},
		"template_kwargs": {clforge.Chat{TemplateKwargs: map[string]any{"a": bad}}, nil},
		"stop":            {clforge.Text("a"), []clforge.GenerateOption{clforge.WithStop("b", bad)}},
		"max_tokens":      {clforge.Text("a"), []clforge.GenerateOption{clforge.WithMaxTokens(-1)}},
		"timeout":         {clforge.Text("a"), []clforge.GenerateOption{clforge.WithTimeout(0)}},
	} {
		_, err := client.Complete(testContext(t), events.prompt, events.options...)
		var refused *clforge.StatusError
		if !errors.As(err, &refused) || !errors.Is(err, clforge.ErrInvalidRequest) || refused.Field != field {
			t.Errorf("%s: error is %v", field, err)
		}
	}
}

// Each kind of constraint sets its own field, and an output has one of them.
func TestConstraintsReachTheServer(t *testing.T) {
	var got *pb.Constraint
	script := &scripted{text: func(stream grpc.BidiStreamingServer[pb.GenerateTextRequest, pb.GenerateTextResponse]) error {
		request, err := stream.Recv()
		got = request.GetSubmit().GetParams().GetConstraint()
		return errors.Join(err, failure(codes.Unimplemented, "seen").Err())
	}}
	client, _ := script.start(t)
	generate := func(options ...clforge.GenerateOption) error {
		_, _, err := collect(newSession(t, client).Generate(testContext(t), clforge.Text("a"), options...))
		return err
	}
	generate(clforge.WithJSONSchema("{}"))
	if got.GetJsonSchema() != "{}" {
		t.Errorf("json_schema is wrong in %v", got)
	}
	generate(clforge.WithRegex("a+"))
	if got.GetRegex() != "a+" {
		t.Errorf("regex is wrong in %v", got)
	}
	generate(clforge.WithGrammar("root ::= \"a\""))
	if got.GetGrammar() != "root ::= \"a\"" {
		t.Errorf("grammar is wrong in %v", got)
	}
	if err := generate(clforge.WithRegex("a"), clforge.WithGrammar("b")); !errors.Is(err, clforge.ErrInvalidRequest) {
		t.Errorf("error is %v", err)
	}
}

// Every option sets the field of its name, and what is not given stays unset.
func TestOptionsReachTheServer(t *testing.T) {
	var got *pb.GenerationParams
	script := &scripted{text: func(stream grpc.BidiStreamingServer[pb.GenerateTextRequest, pb.GenerateTextResponse]) error {
		request, err := stream.Recv()
		got = request.GetSubmit().GetParams()
		return errors.Join(err, failure(codes.Unimplemented, "seen").Err())
	}}
	client, _ := script.start(t)
	_, _, err := collect(newSession(t, client, clforge.WithWindow(5)).Generate(testContext(t), clforge.Text("a"),
		clforge.WithTemperature(0), clforge.WithTopK(2), clforge.WithTopP(0.5), clforge.WithMinP(0.25), clforge.WithMinTokens(3),
		clforge.WithStop("s"), clforge.WithStopTokenIDs(4), clforge.WithIgnoreEOS(), clforge.WithIncludeStop(), clforge.WithPriority(-6),
		clforge.WithCacheSalt("c"), clforge.WithNoCache(), clforge.WithLogprobs(0), clforge.WithEcho(), clforge.WithTellReasoning(false),
		clforge.WithPromptLogprobs(2), clforge.WithMaxDraftTokens(0), clforge.WithNgramSize(4), clforge.WithOneOf("x", "y")))
	if !errors.Is(err, clforge.ErrServer) && !errors.Is(err, clforge.ErrUnimplemented) {
		t.Fatal(err)
	}
	sampling, stopping := got.GetSampling(), got.GetStopping()
	for name, right := range map[string]bool{
		"temperature":     sampling.Temperature != nil && sampling.GetTemperature() == 0,
		"top_k":           sampling.GetTopK() == 2,
		"top_p":           sampling.GetTopP() == 0.5,
		"min_p":           sampling.GetMinP() == 0.25,
		"seed":            sampling.Seed == nil,
		"min_tokens":      stopping.GetMinTokens() == 3 && stopping.MaxTokens == nil,
		"stop":            slices.Equal(stopping.GetStop(), []string{"s"}),
		"stop_token_ids":  slices.Equal(stopping.GetStopTokenIds(), []uint32{4}),
		"ignore_eos":      stopping.GetIgnoreEos(),
		"include_stop":    stopping.GetIncludeStop(),
		"priority":        got.GetPriority() == -6,
		"cache_salt":      got.GetCacheSalt() == "c",
		"no_cache":        got.GetNoCache(),
		"logprobs":        got.Logprobs != nil && got.GetLogprobs() == 0,
		"echo":            got.GetEcho(),
		"tell_reasoning":  got.TellReasoning != nil && !got.GetTellReasoning(),
		"prompt_logprobs": got.GetPromptLogprobs() == 2,
		"speculation": got.GetSpeculation().MaxDraftTokens != nil && got.GetSpeculation().GetMaxDraftTokens() == 0 &&
			got.GetSpeculation().GetNgramSize() == 4,
		"choices": slices.Equal(got.GetConstraint().GetChoices().GetTexts(), []string{"x", "y"}),
		"credit":  got.GetInitialCredit() == 5,
		"timeout": got.Timeout == nil && got.N == nil,
	} {
		if !right {
			t.Errorf("%s is wrong in %v", name, got)
		}
	}
}

// A name in the DNS that stands for several servers is all of them, in turns.
func TestRequestsTakeTurnsOverTheServersOfAName(t *testing.T) {
	names := manual.NewBuilderWithScheme("dns")
	var servers []*clforgetest.Server
	var addresses []resolver.Address
	for range 2 {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		server, front := newServer(t, 1), grpc.NewServer()
		pb.RegisterTokenizerServiceServer(front, server)
		go func() { _ = front.Serve(listener) }()
		t.Cleanup(front.Stop)
		servers = append(servers, server)
		addresses = append(addresses, resolver.Address{Addr: listener.Addr().String()})
	}
	names.InitialState(resolver.State{Addresses: addresses})
	client, err := clforge.New("dns:///clforge", clforge.WithDialOptions(grpc.WithResolvers(names)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	eventually(t, "both servers are asked", func() bool {
		if _, err := client.Complete(testContext(t), clforge.Text("a")); err != nil {
			t.Fatal(err)
		}
		return servers[0].NumSent() > 0 && servers[1].NumSent() > 0
	})
}
