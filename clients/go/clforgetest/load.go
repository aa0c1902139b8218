package clforgetest

import (
	"context"
	"fmt"
	"slices"
	"time"

	pb "clforge.dev/clforge/clforgev1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
)

const loadInterval = 100 * time.Millisecond

// enter names a generation and counts it as live, until leave.
func (s *Server) enter(g *generation) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.numStarted++
	g.globalID = fmt.Sprintf("%032x", s.numStarted)
	s.live = append(s.live, g)
}

func (s *Server) leave(g *generation) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.live = slices.DeleteFunc(s.live, func(other *generation) bool { return other == g })
}

func (s *Server) sent(g *generation, numTokens int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	g.numSent += numTokens
	s.numSent += numTokens
}

func (s *Server) setPaused(g *generation, paused bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	g.paused = paused
}

// ListRequests implements the service.
func (s *Server) ListRequests(context.Context, *pb.ListRequestsRequest) (*pb.ListRequestsResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	response := &pb.ListRequestsResponse{}
	for _, g := range s.live {
		state := pb.RequestState_REQUEST_STATE_DECODE
		if g.paused {
			state = pb.RequestState_REQUEST_STATE_PAUSED
		}
		response.Requests = append(response.Requests, &pb.RequestInfo{
			GlobalId:           g.globalID,
			State:              state,
			NumPromptTokens:    uint32(len(g.prompt)),
			NumGeneratedTokens: uint32(g.numSent),
			Priority:           g.params.GetPriority(),
			Age:                durationpb.New(time.Since(g.started)),
		})
	}
	return response, nil
}

// CancelRequest implements the service.
func (s *Server) CancelRequest(_ context.Context, request *pb.CancelRequestRequest) (*pb.CancelRequestResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, g := range s.live {
		if g.globalID == request.GetGlobalId() {
			g.cancel()
			return &pb.CancelRequestResponse{}, nil
		}
	}
	return nil, status.Errorf(codes.NotFound, "no request %q is live", request.GetGlobalId())
}

// WatchLoad implements the service.
func (s *Server) WatchLoad(_ *pb.WatchLoadRequest, stream grpc.ServerStreamingServer[pb.WatchLoadResponse]) error {
	for {
		if err := stream.Send(&pb.WatchLoadResponse{Load: s.load()}); err != nil {
			return err
		}
		select {
		case <-time.After(loadInterval):
		case <-stream.Context().Done():
			return status.FromContextError(stream.Context().Err()).Err()
		}
	}
}

// load tells of requests and tokens; there is no KV cache to tell of.
func (s *Server) load() *pb.Load {
	s.mu.Lock()
	defer s.mu.Unlock()
	load := &pb.Load{GenerationTokens: uint64(s.numSent)}
	for _, g := range s.live {
		if g.paused {
			load.NumRequestsPaused++
		} else {
			load.NumRequestsRunning++
		}
	}
	return load
}
