package clforge

import "time"

// Event is what a generation brings: [Accepted], [Delta] or [Finished].
type Event interface {
	event()
}

func (Accepted) event() {}
func (Delta) event()    {}
func (Finished) event() {}

// FinishReason is why a choice ended. A choice that failed is an error instead.
type FinishReason string

// Why a choice ended.
const (
	FinishStop      FinishReason = "stop"      // an end-of-generation token, a stop token or a stop string
	FinishLength    FinishReason = "length"    // the most tokens, or the end of the served context
	FinishCancelled FinishReason = "cancelled" // by the client or by somebody else
	FinishDeadline  FinishReason = "deadline"  // the request's timeout passed
)

// Section is what a piece of text is part of; empty where sections are not told apart (see [WithTellReasoning]).
type Section string

// What a piece of text is part of.
const (
	SectionAnswer    Section = "answer"
	SectionReasoning Section = "reasoning" // what the model thinks before it answers
	SectionMark      Section = "mark"      // a mark around the reasoning
	SectionPrompt    Section = "prompt"    // the prompt, returned because of [WithEcho]
)

// ChatTemplateOrigin is where the chat template comes from; empty where the server does not say.
type ChatTemplateOrigin string

// Where the chat template comes from.
const (
	ChatTemplateModel    ChatTemplateOrigin = "model"    // the model's file
	ChatTemplateFallback ChatTemplateOrigin = "fallback" // the file has none: plain dialogue ("User: …")
)

// Accepted says that the request was admitted.
type Accepted struct {
	GlobalID        string // names the request for every connection of the same caller
	Seed            uint64 // the one in use, given or drawn
	NumericsID      string // names the arithmetic; an engine of the same one gives the same bits
	NumPromptTokens int
}

// Delta is a piece of one choice's output, which stands for NumTokens tokens. Text may be empty.
type Delta struct {
	Choice    int
	Text      string
	TokenIDs  []uint32
	NumTokens int
	Logprobs  []TokenLogprobs // one per token, when asked for
	Section   Section
	// PromptLogprobs are of the prompt's tokens, in order and from the second on, when asked for: in deltas of the first choice
	// that come before its first token.
	PromptLogprobs []TokenLogprobs
}

// Finished is the end of one choice.
type Finished struct {
	Choice      int
	Reason      FinishReason
	MatchedStop MatchedStop // nil where nothing matched
	Usage       Usage
	Timings     Timings
}

// MatchedStop is what stopped a choice: a [StopToken] or a [StopString].
type MatchedStop interface {
	matchedStop()
}

// StopToken is the end-of-generation or stop token that ended a choice.
type StopToken uint32

// StopString is the stop string that ended a choice.
type StopString string

func (StopToken) matchedStop()  {}
func (StopString) matchedStop() {}

// Usage counts tokens.
type Usage struct {
	PromptTokens    int
	CachedTokens    int // of the prompt's, those found in the prefix cache
	GeneratedTokens int
	DeliveredTokens int // of the generated, those that arrived
	DraftedTokens   int // proposed by speculation
	AcceptedTokens  int // of the drafted, those accepted
}

// Timings says where the time went.
type Timings struct {
	Queue      time.Duration // until the first step
	Prefill    time.Duration // from there to the first token
	Decode     time.Duration // from there to the last one
	Detokenize time.Duration
}

// Logprob is a token and the natural logarithm of its probability under the model's own distribution.
type Logprob struct {
	TokenID uint32
	Logprob float32
	Token   []byte
}

// TokenLogprobs is the chosen token at one position, and the most likely ones, best first. TextOffset is where the chosen
// token's text begins in the choice's whole text: the first Unicode character of which it has a byte.
type TokenLogprobs struct {
	Chosen     Logprob
	Top        []Logprob
	TextOffset int
}

// Choice is one whole output. Of the text, Answer and Reasoning are these sections, where they are told apart.
type Choice struct {
	Text      string
	TokenIDs  []uint32
	Logprobs  []TokenLogprobs
	Finished  Finished
	Answer    string
	Reasoning string
}

// Completion is a whole answer, of at least one choice. PromptLogprobs begin with the prompt's second token.
type Completion struct {
	Choices        []Choice
	Accepted       Accepted
	PromptLogprobs []TokenLogprobs
}

// Text returns the first choice's text.
func (c *Completion) Text() string { return c.Choices[0].Text }

// ModelInfo describes the model that is being served; lengths in tokens.
type ModelInfo struct {
	Name                 string
	Architecture         string
	VocabSize            int
	ContextLength        int // as served
	TrainedContextLength int
	EOGTokenIDs          []uint32
	VocabSHA256          string
	NumericsID           string // names the arithmetic; an engine of the same one gives the same bits
	WeightBytes          uint64
	NumParameters        uint64
	Device               string
	Version              string
	ChatTemplateOrigin   ChatTemplateOrigin
}
