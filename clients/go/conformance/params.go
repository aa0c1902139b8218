package main

import (
	"time"

	"clforge.dev/clforge"
	pb "clforge.dev/clforge/clforgev1"
	"google.golang.org/protobuf/types/known/durationpb"
)

// params are those that the table uses.
type params struct {
	Temperature   float32
	TopP          *float32 `json:"top_p"`
	MaxTokens     *uint32  `json:"max_tokens"`
	IgnoreEOS     bool     `json:"ignore_eos"`
	Stop          []string
	Timeout       float64 // seconds; 0 for none
	Model         string
	InitialCredit *uint32 `json:"initial_credit"`
}

func (p params) timeout() time.Duration { return time.Duration(p.Timeout * float64(time.Second)) }

// options are the parameters for the SDK, which gives credit by itself.
func (p params) options() []clforge.GenerateOption {
	options := []clforge.GenerateOption{
		clforge.WithTemperature(p.Temperature), clforge.WithStop(p.Stop...), clforge.WithModel(p.Model),
	}
	if p.TopP != nil {
		options = append(options, clforge.WithTopP(*p.TopP))
	}
	if p.MaxTokens != nil {
		options = append(options, clforge.WithMaxTokens(int(*p.MaxTokens)))
	}
	if p.IgnoreEOS {
		options = append(options, clforge.WithIgnoreEOS())
	}
	if p.Timeout > 0 {
		options = append(options, clforge.WithTimeout(p.timeout()))
	}
	return options
}

// submit is the message of a request by the generated code.
func (p params) submit(id uint64, text string) *pb.TextSubmit {
	generation := &pb.GenerationParams{
		Sampling:      &pb.SamplingParams{Temperature: &p.Temperature, TopP: p.TopP},
		Stopping:      &pb.StopParams{MaxTokens: p.MaxTokens, Stop: p.Stop, IgnoreEos: &p.IgnoreEOS},
		InitialCredit: p.InitialCredit,
	}
	if p.Timeout > 0 {
		generation.Timeout = durationpb.New(p.timeout())
	}
	prompt := &pb.Prompt{Kind: &pb.Prompt_Text{Text: text}}
	return &pb.TextSubmit{RequestId: id, Prompt: prompt, Params: generation, Model: p.Model}
}
