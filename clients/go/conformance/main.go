// Command conformance is the Go runner of tests/conformance, whose README tells what it reads and writes:
//
//	conformance ADDRESS
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"time"
)

const (
	caseTimeout   = time.Minute
	defaultWindow = 256
)

// description is one case of the table.
type description struct {
	Client   string
	Window   int
	Deadline float64 // seconds; 0 for none
	Metadata map[string]string
	Steps    []step
}

// step is one thing that a client does; exactly one of its first words is set.
type step struct {
	Submit, Generate, Wait, Cancel, Credit, Resume *uint64
	HalfClose                                      bool `json:"half_close"`
	KeepOpen                                       bool `json:"keep_open"`
	SayNothing                                     bool `json:"say_nothing"`
	Leave, Reopen                                  bool
	Call, Ask                                      string
	Sleep                                          float64 // seconds

	ID      *uint64
	Count   uint64
	Text    string
	Params  params
	PauseAt string `json:"pause_at"`
	For     string
	Tokens  uint32
}

// count returns how many requests a step submits.
func (s step) count() uint64 { return max(s.Count, 1) }

// harness is the other end of standard input and output.
type harness struct {
	lines *bufio.Reader
}

func (h harness) say(message any) error { return json.NewEncoder(os.Stdout).Encode(message) }

// ask asks for something and returns when it is done.
func (h harness) ask(what string) error {
	if err := h.say(map[string]string{"ask": what}); err != nil {
		return err
	}
	_, err := h.lines.ReadString('\n')
	return err
}

// serve runs the cases that come, one a line.
func (h harness) serve(address string) error {
	for {
		line, err := h.lines.ReadBytes('\n')
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		var d description
		if err := json.Unmarshal(line, &d); err != nil {
			return err
		}
		outcome, err := h.run(address, d)
		if err != nil {
			return err
		}
		if err := h.say(map[string]any{"outcome": outcome}); err != nil {
			return err
		}
	}
}

func (h harness) run(address string, d description) (map[string]any, error) {
	ctx, cancel := context.WithTimeout(context.Background(), caseTimeout)
	defer cancel()
	if d.Client == "wire" {
		return runWire(ctx, address, d)
	}
	return runSDK(ctx, address, d, h.ask)
}

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: conformance ADDRESS")
		os.Exit(2)
	}
	h := harness{lines: bufio.NewReader(os.Stdin)}
	if err := h.serve(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "conformance:", err)
		os.Exit(1)
	}
}
