package clforge

import (
	"context"
	"sync"

	pb "clforge.dev/clforge/clforgev1"
)

// creditWindow decides when to grant a request more tokens, so that no choice ever has more than window unread ones.
//
// A grant counts for every choice alike, so the choice that was read least decides; choices that have ended do not count. A
// grant is at least half a window: few messages, and a reader that keeps up never keeps the server waiting.
type creditWindow struct {
	window  int
	granted int
	read    map[int]int // tokens read of each choice that runs
}

func newCreditWindow(window, numChoices int) *creditWindow {
	w := &creditWindow{window: window, granted: window, read: make(map[int]int, numChoices)}
	for choice := range numChoices {
		w.read[choice] = 0
	}
	return w
}

// after notes that an event was read, and returns how many tokens to grant now, 0 for none yet.
func (w *creditWindow) after(event Event) int {
	switch event := event.(type) {
	case Delta:
		w.read[event.Choice] += event.NumTokens
	case Finished:
		delete(w.read, event.Choice)
	}
	if len(w.read) == 0 {
		return 0
	}
	least := w.granted
	for _, tokens := range w.read {
		least = min(least, tokens)
	}
	grant := least + w.window - w.granted
	if 2*grant < w.window {
		return 0
	}
	w.granted += grant
	return grant
}

// mailbox holds what has arrived for one request and was not read yet; the request's credit bounds it. Any goroutine may put,
// one may take.
type mailbox struct {
	mu      sync.Mutex
	updates []*pb.Update
	failure error
	arrived chan struct{} // holds a token after each put
}

func newMailbox() *mailbox { return &mailbox{arrived: make(chan struct{}, 1)} }

func (m *mailbox) put(update *pb.Update) {
	m.mu.Lock()
	m.updates = append(m.updates, update)
	m.mu.Unlock()
	m.wake()
}

// fail lets take return failure once all updates are taken; the first failure counts.
func (m *mailbox) fail(failure error) {
	m.mu.Lock()
	if m.failure == nil {
		m.failure = failure
	}
	m.mu.Unlock()
	m.wake()
}

func (m *mailbox) wake() {
	select {
	case m.arrived <- struct{}{}:
	default:
	}
}

// take returns the next update, waiting for it; the failure, or the context's error, when there will be none.
func (m *mailbox) take(ctx context.Context) (*pb.Update, error) {
	for {
		if update, err := m.poll(); update != nil || err != nil {
			return update, err
		}
		select {
		case <-m.arrived:
		case <-ctx.Done():
			return nil, errorFromContext(ctx)
		}
	}
}

func (m *mailbox) poll() (*pb.Update, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.updates) == 0 {
		return nil, m.failure
	}
	update := m.updates[0]
	m.updates = m.updates[1:]
	return update, nil
}

// outgoing is the queue of messages for one stream, in order. Small ones are put at once; who puts large ones waits for room
// first, so that cancelling never waits for a server that does not read. Session.mu guards it.
type outgoing struct {
	messages []*pb.GenerateTextRequest
	change   chan struct{} // closed, and replaced, whenever the queue changes
}

const maxUnsentMessages = 64

func (o *outgoing) hasRoom() bool { return len(o.messages) < maxUnsentMessages }

func (o *outgoing) put(message *pb.GenerateTextRequest) {
	o.messages = append(o.messages, message)
	o.wake()
}

// pop returns the next message, nil for none.
func (o *outgoing) pop() *pb.GenerateTextRequest {
	if len(o.messages) == 0 {
		return nil
	}
	message := o.messages[0]
	o.messages = o.messages[1:]
	o.wake()
	return message
}

func (o *outgoing) wake() {
	close(o.change)
	o.change = make(chan struct{})
}
