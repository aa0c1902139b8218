package clforge

import "testing"

// The choice that was read least decides what is granted, at least half a window at once; one that has ended does not count.
func TestGrantsFollowTheChoiceReadLeast(t *testing.T) {
	for range 50 { // a map's order is random
		window := newCreditWindow(4, 2)
		for i, step := range []struct {
			event Event
			grant int
		}{
			{Accepted{}, 0},
			{Delta{Choice: 0, NumTokens: 4}, 0},
			{Delta{Choice: 1, NumTokens: 1}, 0},
			{Delta{Choice: 1, NumTokens: 1}, 2},
			{Finished{Choice: 1}, 2},
			{Finished{Choice: 0}, 0},
		} {
			if grant := window.after(step.event); grant != step.grant {
				t.Fatalf("step %d granted %d; want %d", i, grant, step.grant)
			}
		}
	}
}
