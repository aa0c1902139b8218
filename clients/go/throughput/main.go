// Command throughput measures what this SDK makes of many requests on one stream. It prints a line of JSON:
// tokens, seconds, and the processor time that this process took meanwhile.
//
//	throughput ADDRESS NUM_REQUESTS MAX_TOKENS
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync"
	"syscall"
	"time"

	"clforge.dev/clforge"
)

const warmUpTokens = 16 // of each request, before anything is counted

type figures struct {
	Tokens     int     `json:"tokens"`
	Seconds    float64 `json:"seconds"`
	CPUSeconds float64 `json:"cpu_seconds"`
}

// generate runs requests at once to their end, and returns how many tokens came.
func generate(ctx context.Context, session *clforge.Session, numRequests, maxTokens int) (int, error) {
	tokens, failures := make([]int, numRequests), make([]error, numRequests)
	var running sync.WaitGroup
	for i := range numRequests {
		running.Add(1)
		go func() {
			defer running.Done()
			events := session.Generate(ctx, clforge.TokenIDs{1}, clforge.WithMaxTokens(maxTokens), clforge.WithIgnoreEOS())
			for event, err := range events {
				if delta, ok := event.(clforge.Delta); ok {
					tokens[i] += delta.NumTokens
				}
				failures[i] = err
			}
		}()
	}
	running.Wait()
	total := 0
	for _, count := range tokens {
		total += count
	}
	return total, errors.Join(failures...)
}

func cpuSeconds() (float64, error) {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		return 0, err
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano()).Seconds(), nil
}

func measure(ctx context.Context, address string, numRequests, maxTokens int) (*figures, error) {
	client, err := clforge.New(address)
	if err != nil {
		return nil, err
	}
	defer client.Close()
	session, err := client.NewSession(ctx)
	if err != nil {
		return nil, err
	}
	defer session.Close()
	if _, err := generate(ctx, session, numRequests, warmUpTokens); err != nil {
		return nil, err
	}
	busy, err := cpuSeconds()
	if err != nil {
		return nil, err
	}
	started := time.Now()
	tokens, err := generate(ctx, session, numRequests, maxTokens)
	if err != nil {
		return nil, err
	}
	seconds := time.Since(started).Seconds()
	after, err := cpuSeconds()
	return &figures{Tokens: tokens, Seconds: seconds, CPUSeconds: after - busy}, err
}

func run(arguments []string) error {
	if len(arguments) != 3 {
		return errors.New("usage: throughput ADDRESS NUM_REQUESTS MAX_TOKENS")
	}
	numRequests, err := strconv.Atoi(arguments[1])
	if err != nil {
		return err
	}
	maxTokens, err := strconv.Atoi(arguments[2])
	if err != nil {
		return err
	}
	result, err := measure(context.Background(), arguments[0], numRequests, maxTokens)
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(result)
}

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "throughput:", err)
		os.Exit(1)
	}
}
