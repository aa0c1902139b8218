package clforge

import (
	"context"
	"errors"
	"iter"
	"math/rand/v2"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
)

const maxJitter = 0.25 // of the delay, so that clients refused together do not come back together

// retries is one request's right to be tried again: when the server says when, before the first token was delivered, and
// until the budget or the request's own timeout (0 for none) has passed. allowed, where set, can end the right earlier.
type retries struct {
	allowed func() bool
	budget  time.Duration
	timeout time.Duration
	started time.Time
}

func newRetries(budget, timeout time.Duration) *retries {
	if timeout > 0 {
		budget = min(budget, timeout)
	}
	return &retries{budget: budget, timeout: timeout, started: time.Now()}
}

// timeoutLeft returns the timeout to send with an attempt that starts now, nil for none.
func (r *retries) timeoutLeft() *durationpb.Duration {
	if r.timeout <= 0 {
		return nil
	}
	return durationpb.New(max(r.timeout-time.Since(r.started), time.Millisecond))
}

// wait returns nil when the request may be sent again; err when it may not, or not in time; the context's error when that
// ended.
func (r *retries) wait(ctx context.Context, err error) error {
	var refused *StatusError
	if !errors.As(err, &refused) {
		return err
	}
	delay, invited := refused.RetryAfter()
	if !invited || (r.allowed != nil && !r.allowed()) {
		return err
	}
	delay += time.Duration(float64(delay) * maxJitter * rand.Float64())
	if time.Since(r.started)+delay >= r.budget {
		return err
	}
	timer := time.NewTimer(delay)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return errorFromContext(ctx)
	}
}

// retryCall returns the first result of attempt that is no retryable error.
func retryCall[T any](ctx context.Context, r *retries, attempt func() (T, error)) (T, error) {
	for {
		result, err := attempt()
		if err == nil {
			return result, nil
		}
		if err := r.wait(ctx, err); err != nil {
			return result, err
		}
	}
}

// retryEvents yields the events of the first attempt that delivers a token or ends well. Accepted of an attempt that failed
// later has been passed on already: the last Accepted counts.
func retryEvents(ctx context.Context, r *retries, attempt func() iter.Seq2[Event, error], yield func(Event, error) bool) {
	for {
		delivered := false
		var failure error
		for event, err := range attempt() {
			if err != nil {
				failure = err
				break
			}
			if _, isDelta := event.(Delta); isDelta {
				delivered = true
			}
			if !yield(event, nil) {
				return
			}
		}
		if failure == nil {
			return
		}
		if !delivered {
			failure = r.wait(ctx, failure)
		}
		if failure != nil {
			yield(nil, failure)
			return
		}
	}
}
