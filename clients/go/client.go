package clforge

import (
	"context"
	"io"
	"iter"
	"time"

	pb "clforge.dev/clforge/clforgev1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// DefaultTarget is where `clforge serve` listens unless told otherwise.
const DefaultTarget = "127.0.0.1:50051"

const (
	maxMessageBytes    = 16 << 20
	envelopeBytes      = 1 << 10          // what a request needs beside its prompt and parameters
	callTimeout        = 30 * time.Second // for calls that generate nothing
	defaultConnect     = 5 * time.Second
	defaultRetryBudget = 30 * time.Second
)

// Client is a connection to a CLForge server. Any number of goroutines may use it.
//
// It connects at the first call, and again when the connection is lost. A call that cannot connect returns
// [UnreachableError]. Where the server refuses and says when to come back, a call is tried again until the retry budget is
// spent, unless a token was delivered.
type Client struct {
	target      string
	conn        *grpc.ClientConn
	stub        pb.TokenizerServiceClient
	retryBudget time.Duration
}

// New returns a client of the server at target: host:port or unix:/path; or, where dns:///host:port names several servers, of
// all of them: requests take turns, and a session stays with one. It does not connect yet. The error is ErrInvalidRequest for a target that gRPC does not understand, and for an
// API key that would go there in plain text.
func New(target string, options ...ClientOption) (*Client, error) {
	o := clientOptions{connect: defaultConnect, retryBudget: defaultRetryBudget, credentials: insecure.NewCredentials()}
	for _, option := range options {
		option(&o)
	}
	key, err := o.keyOptions(target)
	if err != nil {
		return nil, err
	}
	conn, err := grpc.NewClient(target, append(key, o.dialOptions(target)...)...)
	if err != nil {
		return nil, invalid("target", "is %q; %v", target, err)
	}
	return &Client{target: target, conn: conn, stub: pb.NewTokenizerServiceClient(conn), retryBudget: o.retryBudget}, nil
}

// Close closes the connection; what still runs ends with an error.
func (c *Client) Close() error { return c.conn.Close() }

// WaitForReady returns nil once the server answers and has loaded its model, however long that takes; else the context's
// error, or the server's where it does not say that trying again makes sense.
func (c *Client) WaitForReady(ctx context.Context) error {
	const forever = 100 * 365 * 24 * time.Hour
	_, err := retryCall(ctx, newRetries(forever, 0), func() (*pb.GetModelInfoResponse, error) {
		response, err := c.stub.GetModelInfo(ctx, &pb.GetModelInfoRequest{}, grpc.WaitForReady(true))
		return response, c.wrap(ctx, err)
	})
	return err
}

// Generate continues a prompt and yields Accepted, Deltas and one Finished per choice, or, as the last pair, an error: also
// that of a choice that failed. Leaving the loop, and the end of the context, cancel the request. Each range over the
// iterator is a request of its own.
func (c *Client) Generate(ctx context.Context, prompt Prompt, options ...GenerateOption) iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		p, kind, err := parse(prompt, options)
		if err != nil {
			yield(nil, err)
			return
		}
		request := &pb.GenerateRequest{Prompt: kind, Params: p.generation, Model: p.model}
		r := newRetries(c.retryBudget, p.timeout())
		retryEvents(ctx, r, func() iter.Seq2[Event, error] {
			request.Params.Timeout = r.timeoutLeft()
			return c.events(ctx, request, p.numChoices())
		}, yield)
	}
}

// Chat generates the assistant's next turn: Generate of a [Chat] of these messages. A model without a chat template gets them
// as plain dialogue ("User: …").
func (c *Client) Chat(ctx context.Context, messages []Message, options ...GenerateOption) iter.Seq2[Event, error] {
	return c.Generate(ctx, Chat{Messages: messages}, options...)
}

// Complete continues a prompt and returns the whole answer.
func (c *Client) Complete(ctx context.Context, prompt Prompt, options ...GenerateOption) (*Completion, error) {
	p, kind, err := parse(prompt, options)
	if err != nil {
		return nil, err
	}
	request := &pb.CompleteRequest{Prompt: kind, Params: p.generation, Model: p.model}
	r := newRetries(c.retryBudget, p.timeout())
	response, err := retryCall(ctx, r, func() (*pb.CompleteResponse, error) {
		request.Params.Timeout = r.timeoutLeft()
		response, err := c.stub.Complete(ctx, request)
		return response, c.wrap(ctx, err)
	})
	if err != nil {
		return nil, err
	}
	return completionFromProto(response)
}

// RenderedChat is what the template made of a conversation, and its token ids.
type RenderedChat struct {
	Text     string
	TokenIDs []uint32
}

// RenderChat returns the prompt that a conversation becomes.
func (c *Client) RenderChat(ctx context.Context, chat Chat) (*RenderedChat, error) {
	conversation, err := chat.toProto()
	if err != nil {
		return nil, err
	}
	if err := checkSize("messages", conversation); err != nil {
		return nil, err
	}
	response, err := ask(ctx, c, c.stub.RenderChat, &pb.RenderChatRequest{Chat: conversation})
	if err != nil {
		return nil, err
	}
	return &RenderedChat{Text: response.GetText(), TokenIDs: response.GetTokenIds().GetIds()}, nil
}

// EncodeOption changes how Encode reads a text.
type EncodeOption func(*pb.EncodeRequest)

// WithAddSpecial adds the begin- and end-of-text tokens that the model asks for, or does not. Default true.
func WithAddSpecial(add bool) EncodeOption {
	return func(r *pb.EncodeRequest) { r.AddSpecial = &add }
}

// WithParseSpecial reads special tokens spelled in the text as such. Default false: they stay text.
func WithParseSpecial(parse bool) EncodeOption {
	return func(r *pb.EncodeRequest) { r.ParseSpecial = &parse }
}

// Encode returns the token ids of a text.
func (c *Client) Encode(ctx context.Context, text string, options ...EncodeOption) ([]uint32, error) {
	if err := checkUTF8("text", text); err != nil {
		return nil, err
	}
	encodings, err := c.EncodeBatch(ctx, []string{text}, options...)
	if err != nil {
		return nil, err
	}
	return encodings[0].TokenIDs, nil
}

// DecodeOption changes what Decode returns.
type DecodeOption func(*pb.DecodeRequest)

// WithSkipSpecial leaves out control tokens, or does not. Default true.
func WithSkipSpecial(skip bool) DecodeOption {
	return func(r *pb.DecodeRequest) { r.SkipSpecial = &skip }
}

// Decode returns the text of token ids. Bytes that are not UTF-8 become U+FFFD.
func (c *Client) Decode(ctx context.Context, ids []uint32, options ...DecodeOption) (string, error) {
	decodings, err := c.DecodeBatch(ctx, [][]uint32{ids}, options...)
	if err != nil {
		return "", err
	}
	return decodings[0].Text, nil
}

// ModelInfo describes the model that is being served.
func (c *Client) ModelInfo(ctx context.Context) (*ModelInfo, error) {
	response, err := ask(ctx, c, c.stub.GetModelInfo, &pb.GetModelInfoRequest{})
	if err != nil {
		return nil, err
	}
	return modelInfoFromProto(response.GetModelInfo()), nil
}

// events yields the events of one attempt by the plain door.
func (c *Client) events(ctx context.Context, request *pb.GenerateRequest, numChoices int) iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		streamCtx, cancel := context.WithCancel(ctx)
		defer cancel()
		stream, err := c.stub.Generate(streamCtx, request)
		if err != nil {
			yield(nil, c.wrap(ctx, err))
			return
		}
		updates := newUpdateReader(numChoices)
		for answered := false; ; answered = true {
			response, err := stream.Recv()
			if err == io.EOF {
				break
			}
			if err != nil {
				yield(nil, errorFromRPC(ctx, err, c.target, answered))
				return
			}
			for _, update := range response.GetUpdates() {
				event, err := updates.read(update)
				if !yield(event, err) || err != nil {
					return
				}
			}
		}
		if !updates.done() {
			yield(nil, &ProtocolError{"the server ended the stream before the last choice had finished"})
		}
	}
}

// wrap returns the error of a call that has brought nothing yet, nil for nil.
func (c *Client) wrap(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	return errorFromRPC(ctx, err, c.target, false)
}

// ask makes a call that generates nothing.
func ask[Q, A any](ctx context.Context, c *Client, method func(context.Context, Q, ...grpc.CallOption) (A, error), request Q) (A, error) {
	return retryCall(ctx, newRetries(c.retryBudget, 0), func() (A, error) {
		callCtx, cancel := context.WithTimeout(ctx, callTimeout)
		defer cancel()
		response, err := method(callCtx, request)
		return response, c.wrap(callCtx, err)
	})
}

// parse returns what a request is made of, or the error of what cannot be sent.
func parse(prompt Prompt, options []GenerateOption) (*params, *pb.Prompt, error) {
	p, err := newParams(options)
	if err != nil {
		return nil, nil, err
	}
	if prompt == nil {
		return nil, nil, invalid("prompt", "is nil; must be a Text, a Chat or TokenIDs")
	}
	kind, err := prompt.promptProto()
	if err != nil {
		return nil, nil, err
	}
	if err := checkSize("prompt", kind, p.generation); err != nil {
		return nil, nil, err
	}
	return p, kind, nil
}
