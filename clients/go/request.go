package clforge

import (
	"context"
	"iter"

	pb "clforge.dev/clforge/clforgev1"
	"google.golang.org/grpc/codes"
)

// Request is one request of a session, from [Session.Submit].
type Request struct {
	session    *Session
	id         uint64
	numRunning int // choices whose end has not arrived; only the session's reader uses it
	updates    *updateReader
	credits    *creditWindow
	inbox      *mailbox
}

func newRequest(session *Session, id uint64, numChoices int) *Request {
	return &Request{
		session:    session,
		id:         id,
		numRunning: numChoices,
		updates:    newUpdateReader(numChoices),
		credits:    newCreditWindow(session.window, numChoices),
		inbox:      newMailbox(),
	}
}

// ID returns the request's number on its stream.
func (r *Request) ID() uint64 { return r.id }

// Cancel asks the server to end the request; its events then end with FinishCancelled, unless it ended before.
func (r *Request) Cancel() {
	r.session.send(&pb.GenerateTextRequest{Message: &pb.GenerateTextRequest_Cancel{Cancel: &pb.Cancel{RequestId: r.id}}})
}

// Events yields the request's events until each choice has finished, or, as the last pair, an error: also that of a choice
// that failed. To be ranged over once, by one goroutine. Leaving the loop, and the end of the context, cancel the request.
func (r *Request) Events(ctx context.Context) iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		defer r.leave()
		for !r.updates.done() {
			update, err := r.inbox.take(ctx)
			if err != nil {
				yield(nil, err)
				return
			}
			event, err := r.updates.read(update)
			if !yield(event, err) || err != nil {
				return
			}
			r.grantAfter(event)
		}
	}
}

func (r *Request) leave() {
	if r.session.forget(r) {
		r.Cancel()
	}
	r.inbox.fail(&StatusError{Code: codes.Canceled, Message: "this request's events were left before they ended", Reason: "LEFT"})
}

func (r *Request) grantAfter(event Event) {
	if tokens := r.credits.after(event); tokens > 0 {
		credit := &pb.Credit{RequestId: r.id, Tokens: uint32(tokens)}
		r.session.send(&pb.GenerateTextRequest{Message: &pb.GenerateTextRequest_Credit{Credit: credit}})
	}
}

func (r *Request) arrive(update *pb.Update) {
	r.inbox.put(update)
	if update.GetFinished() == nil {
		return
	}
	if r.numRunning--; r.numRunning == 0 {
		r.session.forget(r)
	}
}
