package clforge

import (
	"context"
	"errors"
	"io"
	"iter"
	"time"

	pb "clforge.dev/clforge/clforgev1"
)

// RequestState is where a request is in its life; empty where the server is newer than this package and names another state.
type RequestState string

// Where a request is in its life.
const (
	StateQueued    RequestState = "queued"    // admitted, no step yet
	StatePrefill   RequestState = "prefill"   // its prompt is being computed
	StateDecode    RequestState = "decode"    // it generates
	StatePaused    RequestState = "paused"    // it waits for credit
	StatePreempted RequestState = "preempted" // it lost its KV blocks, and waits to be computed again
)

// RequestInfo is a live request.
type RequestInfo struct {
	GlobalID           string
	State              RequestState // of the most advanced of its choices
	NumPromptTokens    int
	NumGeneratedTokens int // over all choices
	NumBlocks          int // KV blocks in use
	Priority           int
	Age                time.Duration
}

// Load is how busy the engine is. Steps, tokens and preemptions count from the engine's start.
type Load struct {
	NumRequestsRunning     int // they hold KV blocks
	NumRequestsWaiting     int // they have no KV blocks yet, or lost them
	NumRequestsPaused      int // they have no credit
	NumWaitingPromptTokens uint64
	NumBlocks              int // of the KV cache
	NumUsedBlocks          int // of them, those of live requests
	NumCachedBlocks        int // of them, those of the prefix cache alone
	BlockSize              int // in tokens
	NumSteps               uint64
	PromptTokens           uint64
	GenerationTokens       uint64
	NumPreemptions         uint64
}

// KVUsage returns the share of the KV cache's blocks that live requests use, from 0 to 1.
func (l Load) KVUsage() float64 {
	if l.NumBlocks == 0 {
		return 0
	}
	return float64(l.NumUsedBlocks) / float64(l.NumBlocks)
}

// ListRequests returns the caller's live requests, oldest first.
func (c *Client) ListRequests(ctx context.Context) ([]RequestInfo, error) {
	response, err := ask(ctx, c, c.stub.ListRequests, &pb.ListRequestsRequest{})
	if err != nil {
		return nil, err
	}
	requests := make([]RequestInfo, 0, len(response.GetRequests()))
	for _, info := range response.GetRequests() {
		requests = append(requests, requestInfoFromProto(info))
	}
	return requests, nil
}

// CancelRequest ends a live request of the caller's, by the GlobalID of its Accepted, whichever connection it came by; its
// reader gets Finished with FinishCancelled. The error is ErrNotFound when none of that id is live.
func (c *Client) CancelRequest(ctx context.Context, globalID string) error {
	if err := checkUTF8("global_id", globalID); err != nil {
		return err
	}
	_, err := ask(ctx, c, c.stub.CancelRequest, &pb.CancelRequestRequest{GlobalId: globalID})
	return err
}

// Load returns how busy the engine is now.
func (c *Client) Load(ctx context.Context) (Load, error) {
	return retryCall(ctx, newRetries(c.retryBudget, 0), func() (Load, error) {
		callCtx, cancel := context.WithTimeout(ctx, callTimeout)
		defer cancel()
		for load, err := range c.WatchLoad(callCtx) {
			return load, err
		}
		return Load{}, &ConnectionLostError{Target: c.target, Err: errors.New("it ended before the load was told")}
	})
}

// WatchLoad yields how busy the engine is: at once, then whenever that changes, but at least once a second and at most ten
// times. It ends when the server drains, with an error as its last pair when the connection breaks or the server refuses,
// and when the loop is left.
func (c *Client) WatchLoad(ctx context.Context) iter.Seq2[Load, error] {
	return func(yield func(Load, error) bool) {
		streamCtx, cancel := context.WithCancel(ctx)
		defer cancel()
		stream, err := c.stub.WatchLoad(streamCtx, &pb.WatchLoadRequest{})
		if err != nil {
			yield(Load{}, c.wrap(ctx, err))
			return
		}
		for answered := false; ; answered = true {
			response, err := stream.Recv()
			if err == io.EOF {
				return
			}
			if err != nil {
				yield(Load{}, errorFromRPC(ctx, err, c.target, answered))
				return
			}
			if !yield(loadFromProto(response.GetLoad()), nil) {
				return
			}
		}
	}
}

var requestStates = map[pb.RequestState]RequestState{
	pb.RequestState_REQUEST_STATE_QUEUED:    StateQueued,
	pb.RequestState_REQUEST_STATE_PREFILL:   StatePrefill,
	pb.RequestState_REQUEST_STATE_DECODE:    StateDecode,
	pb.RequestState_REQUEST_STATE_PAUSED:    StatePaused,
	pb.RequestState_REQUEST_STATE_PREEMPTED: StatePreempted,
}

func requestInfoFromProto(info *pb.RequestInfo) RequestInfo {
	return RequestInfo{
		GlobalID:           info.GetGlobalId(),
		State:              requestStates[info.GetState()],
		NumPromptTokens:    int(info.GetNumPromptTokens()),
		NumGeneratedTokens: int(info.GetNumGeneratedTokens()),
		NumBlocks:          int(info.GetNumBlocks()),
		Priority:           int(info.GetPriority()),
		Age:                info.GetAge().AsDuration(),
	}
}

func loadFromProto(load *pb.Load) Load {
	return Load{
		NumRequestsRunning:     int(load.GetNumRequestsRunning()),
		NumRequestsWaiting:     int(load.GetNumRequestsWaiting()),
		NumRequestsPaused:      int(load.GetNumRequestsPaused()),
		NumWaitingPromptTokens: load.GetNumWaitingPromptTokens(),
		NumBlocks:              int(load.GetNumBlocks()),
		NumUsedBlocks:          int(load.GetNumUsedBlocks()),
		NumCachedBlocks:        int(load.GetNumCachedBlocks()),
		BlockSize:              int(load.GetBlockSize()),
		NumSteps:               load.GetNumSteps(),
		PromptTokens:           load.GetPromptTokens(),
		GenerationTokens:       load.GetGenerationTokens(),
		NumPreemptions:         load.GetNumPreemptions(),
	}
}
