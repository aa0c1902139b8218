// Package clforgetest has a CLForge server without a model, for tests of programs that use package clforge.
//
//	server := clforgetest.NewServer(func(prompt string) []string { return []string{"Hello", " world"} })
//	defer server.Close()
//	client := server.Client()
//
// It speaks the whole protocol, credits included, within the process: no port is opened.
package clforgetest

import (
	"context"
	"net"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"clforge.dev/clforge"
	pb "clforge.dev/clforge/clforgev1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
)

// Server answers every prompt by a function. Its vocabulary is the 256 bytes: token ids stand for them.
type Server struct {
	pb.UnimplementedTokenizerServiceServer
	answer   func(prompt string) []string
	pace     time.Duration
	grpc     *grpc.Server
	listener *bufconn.Listener

	mu         sync.Mutex
	failures   []*status.Status
	live       []*generation // oldest first
	numStarted int
	numSent    int
}

// Option changes a Server.
type Option func(*Server)

// WithPace makes each token take this long.
func WithPace(pace time.Duration) Option {
	return func(s *Server) { s.pace = pace }
}

// NewServer starts a server. answer returns the pieces of text, one for each token, that continue a prompt: the text as given,
// token ids as the text of these bytes, a conversation as one line "role: content" for each turn.
func NewServer(answer func(prompt string) []string, options ...Option) *Server {
	s := &Server{answer: answer, grpc: grpc.NewServer(), listener: bufconn.Listen(1 << 20)}
	for _, option := range options {
		option(s)
	}
	pb.RegisterTokenizerServiceServer(s.grpc, s)
	go func() { _ = s.grpc.Serve(s.listener) }() // ends with Close, which has nothing to tell
	return s
}

// Client returns a client of this server, which the caller closes.
func (s *Server) Client(options ...clforge.ClientOption) *clforge.Client {
	dial := func(ctx context.Context, _ string) (net.Conn, error) { return s.listener.DialContext(ctx) }
	options = append([]clforge.ClientOption{clforge.WithDialOptions(grpc.WithContextDialer(dial))}, options...)
	client, err := clforge.New("passthrough:///localhost", options...)
	if err != nil {
		panic(err) // the address is right
	}
	return client
}

// Close stops the server at once, as a crash would.
func (s *Server) Close() { s.grpc.Stop() }

// Fail lets each of the next generations fail, in order, with one of these statuses, before its first token.
func (s *Server) Fail(failures ...*status.Status) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failures = append(s.failures, failures...)
}

// NumLive returns how many generations run.
func (s *Server) NumLive() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.live)
}

// NumSent returns how many tokens the server has sent, over all generations and choices.
func (s *Server) NumSent() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.numSent
}

func (s *Server) nextFailure() *status.Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.failures) == 0 {
		return nil
	}
	failure := s.failures[0]
	s.failures = s.failures[1:]
	return failure
}

// Encode implements the service.
func (s *Server) Encode(_ context.Context, request *pb.EncodeRequest) (*pb.EncodeResponse, error) {
	response := &pb.EncodeResponse{}
	for _, text := range request.GetTexts() {
		response.Sequences = append(response.Sequences, &pb.TokenIds{Ids: encode(text)})
		if request.GetWithOffsets() {
			response.Offsets = append(response.Offsets, offsets(text))
		}
	}
	return response, nil
}

// Decode implements the service.
func (s *Server) Decode(_ context.Context, request *pb.DecodeRequest) (*pb.DecodeResponse, error) {
	response := &pb.DecodeResponse{}
	for _, sequence := range request.GetSequences() {
		response.Texts = append(response.Texts, decode(sequence.GetIds()))
		if request.GetWithOffsets() {
			response.Offsets = append(response.Offsets, offsets(string(bytesOf(sequence.GetIds()))))
		}
	}
	return response, nil
}

// RenderChat implements the service.
func (s *Server) RenderChat(_ context.Context, request *pb.RenderChatRequest) (*pb.RenderChatResponse, error) {
	text := render(request.GetChat())
	return &pb.RenderChatResponse{Text: text, TokenIds: &pb.TokenIds{Ids: encode(text)}}, nil
}

// GetModelInfo implements the service.
func (s *Server) GetModelInfo(context.Context, *pb.GetModelInfoRequest) (*pb.GetModelInfoResponse, error) {
	return &pb.GetModelInfoResponse{ModelInfo: &pb.ModelInfo{
		Name:          "clforgetest",
		Architecture:  "none",
		VocabSize:     256,
		ContextLength: 1 << 20,
		NumericsId:    "clforgetest",
	}}, nil
}

func promptText(prompt *pb.Prompt) string {
	switch kind := prompt.GetKind().(type) {
	case *pb.Prompt_Chat:
		return render(kind.Chat)
	case *pb.Prompt_TokenIds:
		return decode(kind.TokenIds.GetIds())
	default:
		return prompt.GetText()
	}
}

func render(chat *pb.Chat) string {
	var text strings.Builder
	for _, turn := range chat.GetMessages() {
		text.WriteString(turn.GetRole() + ": " + turn.GetContent() + "\n")
	}
	return text.String()
}

func encode(text string) []uint32 {
	ids := make([]uint32, len(text))
	for i := range len(text) {
		ids[i] = uint32(text[i])
	}
	return ids
}

func decode(ids []uint32) string {
	return string([]rune(string(bytesOf(ids)))) // in which each byte that is not UTF-8 is U+FFFD
}

func bytesOf(ids []uint32) []byte {
	text := make([]byte, len(ids))
	for i, id := range ids {
		text[i] = byte(id)
	}
	return text
}

// offsets tells for each byte of a text its character.
func offsets(text string) *pb.TokenOffsets {
	result := &pb.TokenOffsets{}
	for number, rest := uint32(0), text; rest != ""; number++ {
		_, size := utf8.DecodeRuneInString(rest)
		for range size {
			result.Starts = append(result.Starts, number)
			result.Ends = append(result.Ends, number+1)
		}
		rest = rest[size:]
	}
	return result
}
