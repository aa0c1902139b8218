package clforgetest

import (
	"context"
	"strings"
	"sync"
	"time"

	pb "clforge.dev/clforge/clforgev1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
)

// generation is one request that runs.
type generation struct {
	server   *Server
	id       uint64
	globalID string
	prompt   string
	params   *pb.GenerationParams
	credits  chan uint32
	cancel   context.CancelFunc
	sequence []uint32 // of each choice, the next update's
	send     func(*pb.Update) error
	started  time.Time

	numSent int  // guarded by the server's mutex
	paused  bool // guarded by the server's mutex
}

// newGeneration returns a request that is live from now on and must be run, with the context that it returns.
func (s *Server) newGeneration(
	ctx context.Context, id uint64, prompt *pb.Prompt, params *pb.GenerationParams, send func(*pb.Update) error,
) (context.Context, *generation) {
	ctx, cancel := context.WithCancel(ctx)
	g := &generation{
		server:   s,
		id:       id,
		prompt:   promptText(prompt),
		params:   params,
		credits:  make(chan uint32, 1024),
		cancel:   cancel,
		sequence: make([]uint32, max(params.GetN(), 1)),
		send:     send,
		started:  time.Now(),
	}
	s.enter(g)
	return ctx, g
}

// run sends every update until each choice has ended; the error of what could not be sent.
func (g *generation) run(ctx context.Context) error {
	defer g.cancel()
	defer g.server.leave(g)
	if timeout := g.params.GetTimeout(); timeout != nil {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, timeout.AsDuration())
		defer cancel()
	}
	if failure := g.server.nextFailure(); failure != nil {
		return g.finish(&pb.Finished{Reason: pb.FinishReason_FINISH_REASON_ERROR, Error: failure.Proto()})
	}
	accepted := &pb.Accepted{
		GlobalId:        g.globalID,
		Seed:            g.params.GetSampling().GetSeed(),
		NumericsId:      "clforgetest",
		NumPromptTokens: uint32(len(g.prompt)),
	}
	if err := g.update(0, &pb.Update{Event: &pb.Update_Accepted{Accepted: accepted}}); err != nil {
		return err
	}
	finished, err := g.tokens(ctx)
	if err != nil {
		return err
	}
	return g.finish(finished)
}

// tokens sends the answer and returns how it ended.
func (g *generation) tokens(ctx context.Context) (*pb.Finished, error) {
	pieces, reason := g.server.answer(g.prompt), pb.FinishReason_FINISH_REASON_STOP
	if limit := int(g.params.GetStopping().GetMaxTokens()); limit > 0 && limit < len(pieces) {
		pieces, reason = pieces[:limit], pb.FinishReason_FINISH_REASON_LENGTH
	}
	credit, limited := g.params.GetInitialCredit(), g.params.InitialCredit != nil
	numSent := 0
	for _, piece := range pieces {
		if !g.await(ctx, &credit, limited) {
			reason = pb.FinishReason_FINISH_REASON_CANCELLED
			if ctx.Err() == context.DeadlineExceeded {
				reason = pb.FinishReason_FINISH_REASON_DEADLINE
			}
			break
		}
		credit--
		numSent++
		g.server.sent(g, len(g.sequence))
		for choice := range g.sequence {
			delta := &pb.Delta{Text: piece, NumTokens: 1}
			if err := g.update(choice, &pb.Update{Event: &pb.Update_Delta{Delta: delta}}); err != nil {
				return nil, err
			}
		}
	}
	usage := &pb.Usage{PromptTokens: uint32(len(g.prompt)), GeneratedTokens: uint32(numSent), DeliveredTokens: uint32(numSent)}
	return &pb.Finished{Reason: reason, Usage: usage}, nil
}

// await returns true when the next token may be sent, false when ctx has ended.
func (g *generation) await(ctx context.Context, credit *uint32, limited bool) bool {
	if pace := g.server.pace; pace > 0 {
		select {
		case <-time.After(pace):
		case <-ctx.Done():
		}
	}
	if limited && *credit == 0 {
		g.server.setPaused(g, true)
		defer g.server.setPaused(g, false)
	}
	for limited && *credit == 0 && ctx.Err() == nil {
		select {
		case more := <-g.credits:
			*credit += more
		case <-ctx.Done():
		}
	}
	return ctx.Err() == nil
}

func (g *generation) finish(finished *pb.Finished) error {
	for choice := range g.sequence {
		if err := g.update(choice, &pb.Update{Event: &pb.Update_Finished{Finished: finished}}); err != nil {
			return err
		}
	}
	return nil
}

func (g *generation) update(choice int, update *pb.Update) error {
	update.RequestId, update.Choice, update.Sequence = g.id, uint32(choice), g.sequence[choice]
	g.sequence[choice]++
	return g.send(update)
}

// Generate implements the service.
func (s *Server) Generate(request *pb.GenerateRequest, stream grpc.ServerStreamingServer[pb.GenerateResponse]) error {
	ctx, g := s.newGeneration(stream.Context(), 0, request.GetPrompt(), request.GetParams(), func(update *pb.Update) error {
		return stream.Send(&pb.GenerateResponse{Updates: []*pb.Update{update}})
	})
	return g.run(ctx)
}

// Complete implements the service.
func (s *Server) Complete(ctx context.Context, request *pb.CompleteRequest) (*pb.CompleteResponse, error) {
	response := &pb.CompleteResponse{}
	texts := make([]strings.Builder, max(request.GetParams().GetN(), 1))
	for range texts {
		response.Choices = append(response.Choices, &pb.CompleteResponse_Choice{})
	}
	ctx, g := s.newGeneration(ctx, 0, request.GetPrompt(), request.GetParams(), func(update *pb.Update) error {
		switch event := update.GetEvent().(type) {
		case *pb.Update_Accepted:
			response.Accepted = event.Accepted
		case *pb.Update_Delta:
			texts[update.GetChoice()].WriteString(event.Delta.GetText())
		case *pb.Update_Finished:
			if event.Finished.GetError() != nil {
				return status.FromProto(event.Finished.GetError()).Err()
			}
			response.Choices[update.GetChoice()].Finished = event.Finished
		}
		return nil
	})
	if err := g.run(ctx); err != nil {
		return nil, err
	}
	for choice := range texts {
		response.Choices[choice].Text = texts[choice].String()
	}
	return response, nil
}

// GenerateText implements the service.
func (s *Server) GenerateText(stream grpc.BidiStreamingServer[pb.GenerateTextRequest, pb.GenerateTextResponse]) error {
	var sending sync.Mutex
	send := func(update *pb.Update) error {
		sending.Lock()
		defer sending.Unlock()
		return stream.Send(&pb.GenerateTextResponse{Updates: []*pb.Update{update}})
	}
	var running sync.WaitGroup
	defer running.Wait()
	started := make(map[uint64]*generation)
	for {
		request, err := stream.Recv()
		if err != nil {
			return nil // what still runs goes on to its end; where the connection broke, its context has ended
		}
		switch message := request.GetMessage().(type) {
		case *pb.GenerateTextRequest_Submit:
			submit := message.Submit
			ctx, g := s.newGeneration(stream.Context(), submit.GetRequestId(), submit.GetPrompt(), submit.GetParams(), send)
			started[g.id] = g
			running.Add(1)
			go func() {
				defer running.Done()
				_ = g.run(ctx) // fails only with the stream
			}()
		case *pb.GenerateTextRequest_Credit:
			if g := started[message.Credit.GetRequestId()]; g != nil {
				g.credits <- message.Credit.GetTokens()
			}
		case *pb.GenerateTextRequest_Cancel:
			if g := started[message.Cancel.GetRequestId()]; g != nil {
				g.cancel()
			}
		}
	}
}
