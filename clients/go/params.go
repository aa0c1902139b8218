package clforge

import (
	"math"
	"time"

	pb "clforge.dev/clforge/clforgev1"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
)

// GenerateOption is one parameter of a generation. What is not given takes the server's default.
type GenerateOption func(*params)

type params struct {
	generation *pb.GenerationParams
	model      string
	err        error // of the first value that cannot be sent
}

func newParams(options []GenerateOption) (*params, error) {
	p := &params{generation: &pb.GenerationParams{Sampling: &pb.SamplingParams{}, Stopping: &pb.StopParams{}}}
	for _, option := range options {
		option(p)
	}
	return p, p.err
}

// timeout returns the request's timeout, 0 for none.
func (p *params) timeout() time.Duration { return p.generation.GetTimeout().AsDuration() }

// numChoices returns how many choices end. At least one does, also of a request that the server will refuse.
func (p *params) numChoices() int {
	if n := p.generation.GetN(); n > 1 && n <= maxChoices {
		return int(n)
	}
	return 1
}

const maxChoices = 16

func (p *params) fail(err error) {
	if p.err == nil {
		p.err = err
	}
}

func (p *params) speculation() *pb.Speculation {
	if p.generation.Speculation == nil {
		p.generation.Speculation = &pb.Speculation{}
	}
	return p.generation.Speculation
}

func (p *params) count(field string, n int) *uint32 {
	if n < 0 || n > math.MaxInt32 {
		p.fail(invalid(field, "is %d; must be in [0, 2^31)", n))
	}
	count := uint32(n)
	return &count
}

func (p *params) text(field, text string) string {
	if err := checkUTF8(field, text); err != nil {
		p.fail(err)
	}
	return text
}

func (p *params) constrain(constraint *pb.Constraint) {
	if p.generation.Constraint != nil {
		p.fail(invalid("constraint", "is set twice; an output has one constraint"))
	}
	p.generation.Constraint = constraint
}

// WithTemperature divides the logits, in [0, 100]. 0 is greedy: the most likely token always. Default 1.
func WithTemperature(temperature float32) GenerateOption {
	return func(p *params) { p.generation.Sampling.Temperature = &temperature }
}

// WithTopK keeps the k most likely tokens; 0, the default, keeps all.
func WithTopK(k int) GenerateOption {
	return func(p *params) { p.generation.Sampling.TopK = p.count("top_k", k) }
}

// WithTopP keeps the smallest set of most likely tokens whose probability reaches topP, in (0, 1]. Default 1: all.
func WithTopP(topP float32) GenerateOption {
	return func(p *params) { p.generation.Sampling.TopP = &topP }
}

// WithMinP drops tokens less likely than minP times the most likely one; in [0, 1], default 0.
func WithMinP(minP float32) GenerateOption {
	return func(p *params) { p.generation.Sampling.MinP = &minP }
}

// WithSeed sets the key of the random numbers. By default the server draws one, which Accepted tells.
func WithSeed(seed uint64) GenerateOption {
	return func(p *params) { p.generation.Sampling.Seed = &seed }
}

// WithTypicalP keeps the most typical tokens, whose surprise is nearest the mean, up to this probability; in (0, 1].
func WithTypicalP(typicalP float32) GenerateOption {
	return func(p *params) { p.generation.Sampling.TypicalP = &typicalP }
}

// WithTopNSigma keeps logits of at least the largest less n standard deviations; in [0, 100], default 0: all.
func WithTopNSigma(n float32) GenerateOption {
	return func(p *params) { p.generation.Sampling.TopNSigma = &n }
}

// WithRepetitionPenalty divides the logits of known tokens, or multiplies negative ones; in (0, 10], default 1.
func WithRepetitionPenalty(penalty float32) GenerateOption {
	return func(p *params) { p.generation.Sampling.RepetitionPenalty = &penalty }
}

// WithFrequencyPenalty is taken from a token's logit for each time it was generated; in [-10, 10], default 0.
func WithFrequencyPenalty(penalty float32) GenerateOption {
	return func(p *params) { p.generation.Sampling.FrequencyPenalty = &penalty }
}

// WithPresencePenalty is taken from a token's logit if it was generated; in [-10, 10], default 0.
func WithPresencePenalty(penalty float32) GenerateOption {
	return func(p *params) { p.generation.Sampling.PresencePenalty = &penalty }
}

// WithPenaltyWindow lets the three penalties look at the last n tokens, prompt included; 0, the default, is all.
func WithPenaltyWindow(n int) GenerateOption {
	return func(p *params) { p.generation.Sampling.PenaltyWindow = p.count("penalty_window", n) }
}

// WithDry penalises tokens that would go on with a repetition.
func WithDry(dry *pb.Dry) GenerateOption {
	return func(p *params) { p.generation.Sampling.Dry = dry }
}

// WithXTC drops the most likely tokens with this probability, if their share reaches the threshold, but for the last of them.
func WithXTC(probability, threshold float32) GenerateOption {
	return func(p *params) {
		p.generation.Sampling.Xtc = &pb.Xtc{Probability: &probability, Threshold: &threshold}
	}
}

// WithMirostat aims at this surprise, in bits; it takes the place of all filters. A usual learning rate is 0.1.
func WithMirostat(target, learningRate float32) GenerateOption {
	return func(p *params) {
		p.generation.Sampling.Mirostat = &pb.Mirostat{Target: &target, LearningRate: &learningRate}
	}
}

// WithLogitBias adds to logits, by token id; at most 1024, each in [-100, 100].
func WithLogitBias(bias map[uint32]float32) GenerateOption {
	return func(p *params) { p.generation.Sampling.LogitBias = bias }
}

// WithAllowedTokenIDs lets no other tokens be chosen, end-of-generation tokens included; at most 65536.
func WithAllowedTokenIDs(ids ...uint32) GenerateOption {
	return func(p *params) {
		p.generation.Sampling.AllowedTokenIds = append(p.generation.Sampling.AllowedTokenIds, ids...)
	}
}

// WithBadTokenSequence never completes this sequence of tokens; at most 256 of at most 64 ids.
func WithBadTokenSequence(ids ...uint32) GenerateOption {
	return func(p *params) {
		sequence := &pb.TokenSequence{Ids: ids}
		p.generation.Sampling.BadTokenSequences = append(p.generation.Sampling.BadTokenSequences, sequence)
	}
}

// WithBadWords never completes these words, nor with a space before; at most 64 of at most 256 bytes.
func WithBadWords(words ...string) GenerateOption {
	return func(p *params) {
		for _, word := range words {
			p.generation.Sampling.BadWords = append(p.generation.Sampling.BadWords, p.text("bad_words", word))
		}
	}
}

// WithOrder applies these stages in this order, and no others.
func WithOrder(stages ...pb.SamplingStage) GenerateOption {
	return func(p *params) { p.generation.Sampling.Order = stages }
}

// WithMaxTokens ends a choice after n tokens, at least 1. Default: the end of the served context.
func WithMaxTokens(n int) GenerateOption {
	return func(p *params) { p.generation.Stopping.MaxTokens = p.count("max_tokens", n) }
}

// WithMinTokens lets no end-of-generation or stop token be sampled before n tokens. Default 0.
func WithMinTokens(n int) GenerateOption {
	return func(p *params) { p.generation.Stopping.MinTokens = p.count("min_tokens", n) }
}

// WithStop ends a choice at the earliest of these strings; at most 16 of at most 1024 bytes each.
func WithStop(stop ...string) GenerateOption {
	return func(p *params) {
		for _, text := range stop {
			p.generation.Stopping.Stop = append(p.generation.Stopping.Stop, p.text("stop", text))
		}
	}
}

// WithStopTokenIDs ends a choice at any of these tokens; at most 16.
func WithStopTokenIDs(ids ...uint32) GenerateOption {
	return func(p *params) {
		p.generation.Stopping.StopTokenIds = append(p.generation.Stopping.StopTokenIds, ids...)
	}
}

// WithIgnoreEOS goes on after an end-of-generation token, which is then delivered like any other.
func WithIgnoreEOS() GenerateOption {
	return func(p *params) { p.generation.Stopping.IgnoreEos = proto.Bool(true) }
}

// WithIncludeStop delivers a matched stop string as part of the text.
func WithIncludeStop() GenerateOption {
	return func(p *params) { p.generation.Stopping.IncludeStop = proto.Bool(true) }
}

// WithChoices generates n independent choices, in [1, 16]. Default 1.
func WithChoices(n int) GenerateOption {
	return func(p *params) { p.generation.N = p.count("n", n) }
}

// WithPriority schedules a higher value first; in [-100, 100], default 0.
func WithPriority(priority int32) GenerateOption {
	return func(p *params) { p.generation.Priority = &priority }
}

// WithTimeout ends the request with FinishDeadline after this time, queueing included, keeping what had come. The context's
// own deadline ends it with an error instead.
func WithTimeout(timeout time.Duration) GenerateOption {
	return func(p *params) {
		if timeout <= 0 {
			p.fail(invalid("timeout", "is %v; must be positive", timeout))
		}
		p.generation.Timeout = durationpb.New(timeout)
	}
}

// WithCacheSalt shares cached prompts only with requests of the same salt; at most 256 bytes.
func WithCacheSalt(salt string) GenerateOption {
	return func(p *params) {
		salt := p.text("cache_salt", salt)
		p.generation.CacheSalt = &salt
	}
}

// WithNoCache neither reads nor fills the prefix cache.
func WithNoCache() GenerateOption {
	return func(p *params) { p.generation.NoCache = proto.Bool(true) }
}

// WithLogprobs reports the log-probability of each token and of the top most likely ones; top in [0, 20].
func WithLogprobs(top int) GenerateOption {
	return func(p *params) { p.generation.Logprobs = p.count("logprobs", top) }
}

// WithPromptLogprobs reports the same for each of the prompt's tokens but the first; top in [0, 20].
func WithPromptLogprobs(top int) GenerateOption {
	return func(p *params) { p.generation.PromptLogprobs = p.count("prompt_logprobs", top) }
}

// WithMaxDraftTokens limits drafts, which change how fast the output comes and never what it is; n in [0, 16], 0 for none.
func WithMaxDraftTokens(n int) GenerateOption {
	return func(p *params) { p.speculation().MaxDraftTokens = p.count("max_draft_tokens", n) }
}

// WithNgramSize limits the run of last tokens that is looked up for a draft; n in [1, 8].
func WithNgramSize(n int) GenerateOption {
	return func(p *params) { p.speculation().NgramSize = p.count("ngram_size", n) }
}

// WithJSONSchema makes the output JSON that is valid by this schema, which is JSON text itself.
func WithJSONSchema(schema string) GenerateOption {
	return func(p *params) {
		p.constrain(&pb.Constraint{Kind: &pb.Constraint_JsonSchema{JsonSchema: p.text("json_schema", schema)}})
	}
}

// WithRegex makes the output a text that matches this expression as a whole.
func WithRegex(regex string) GenerateOption {
	return func(p *params) {
		p.constrain(&pb.Constraint{Kind: &pb.Constraint_Regex{Regex: p.text("regex", regex)}})
	}
}

// WithGrammar makes the output a text of this grammar, in Lark or GBNF.
func WithGrammar(grammar string) GenerateOption {
	return func(p *params) {
		p.constrain(&pb.Constraint{Kind: &pb.Constraint_Grammar{Grammar: p.text("grammar", grammar)}})
	}
}

// WithOneOf makes the output one of these texts.
func WithOneOf(texts ...string) GenerateOption {
	return func(p *params) {
		choices := &pb.Choices{}
		for _, text := range texts {
			choices.Texts = append(choices.Texts, p.text("choices", text))
		}
		p.constrain(&pb.Constraint{Kind: &pb.Constraint_Choices{Choices: choices}})
	}
}

// WithModel names the model wanted; the error is ErrNotFound when another one is served.
func WithModel(name string) GenerateOption {
	return func(p *params) { p.model = p.text("model", name) }
}

// WithEcho returns the prompt's text before the output, as SectionPrompt.
func WithEcho() GenerateOption {
	return func(p *params) { p.generation.Echo = proto.Bool(true) }
}

// WithTellReasoning tells reasoning apart from the answer, or does not. Default: for a Chat, where the model knows marks.
func WithTellReasoning(tell bool) GenerateOption {
	return func(p *params) { p.generation.TellReasoning = &tell }
}
