package clforge

import (
	"fmt"

	pb "clforge.dev/clforge/clforgev1"
)

// updateReader turns one request's updates into events and knows when they are complete.
type updateReader struct {
	nextSequence map[uint32]uint32 // of each choice that has not finished
}

func newUpdateReader(numChoices int) *updateReader {
	r := &updateReader{nextSequence: make(map[uint32]uint32, numChoices)}
	for choice := range numChoices {
		r.nextSequence[uint32(choice)] = 0
	}
	return r
}

func (r *updateReader) done() bool { return len(r.nextSequence) == 0 }

// read returns the update's event, or the error of a choice that failed, or ProtocolError when an update is missing.
func (r *updateReader) read(update *pb.Update) (Event, error) {
	choice, sequence := update.GetChoice(), update.GetSequence()
	expected, running := r.nextSequence[choice]
	if !running {
		return nil, &ProtocolError{fmt.Sprintf("an update came for choice %d, which has ended or was not asked for", choice)}
	}
	if sequence != expected {
		return nil, &ProtocolError{fmt.Sprintf("update %d of choice %d came when %d was due; some are missing", sequence, choice, expected)}
	}
	r.nextSequence[choice]++
	switch event := update.GetEvent().(type) {
	case *pb.Update_Accepted:
		return acceptedFromProto(event.Accepted), nil
	case *pb.Update_Delta:
		return deltaFromProto(event.Delta, choice), nil
	case *pb.Update_Finished:
		delete(r.nextSequence, choice)
		return eventOrError(finishedFromProto(event.Finished, choice))
	default:
		return nil, &ProtocolError{"the server sent an update without an event; is it newer than this client?"}
	}
}

func eventOrError(finished Finished, err error) (Event, error) {
	if err != nil {
		return nil, err
	}
	return finished, nil
}

var finishReasons = map[pb.FinishReason]FinishReason{
	pb.FinishReason_FINISH_REASON_STOP:      FinishStop,
	pb.FinishReason_FINISH_REASON_LENGTH:    FinishLength,
	pb.FinishReason_FINISH_REASON_CANCELLED: FinishCancelled,
	pb.FinishReason_FINISH_REASON_DEADLINE:  FinishDeadline,
}

// What a newer server may say beyond these is empty, as if it said nothing.
var (
	sections = map[pb.Section]Section{
		pb.Section_SECTION_ANSWER:    SectionAnswer,
		pb.Section_SECTION_REASONING: SectionReasoning,
		pb.Section_SECTION_MARK:      SectionMark,
		pb.Section_SECTION_PROMPT:    SectionPrompt,
	}
	templateOrigins = map[pb.ChatTemplateOrigin]ChatTemplateOrigin{
		pb.ChatTemplateOrigin_CHAT_TEMPLATE_ORIGIN_MODEL:    ChatTemplateModel,
		pb.ChatTemplateOrigin_CHAT_TEMPLATE_ORIGIN_FALLBACK: ChatTemplateFallback,
	}
)

func acceptedFromProto(accepted *pb.Accepted) Accepted {
	return Accepted{
		GlobalID:        accepted.GetGlobalId(),
		Seed:            accepted.GetSeed(),
		NumericsID:      accepted.GetNumericsId(),
		NumPromptTokens: int(accepted.GetNumPromptTokens()),
	}
}

func deltaFromProto(delta *pb.Delta, choice uint32) Delta {
	return Delta{
		Choice:         int(choice),
		Text:           delta.GetText(),
		TokenIDs:       delta.GetTokenIds(),
		NumTokens:      int(delta.GetNumTokens()),
		Logprobs:       logprobsFromProto(delta.GetLogprobs()),
		Section:        sections[delta.GetSection()],
		PromptLogprobs: logprobsFromProto(delta.GetPromptLogprobs()),
	}
}

func finishedFromProto(finished *pb.Finished, choice uint32) (Finished, error) {
	if finished.GetReason() == pb.FinishReason_FINISH_REASON_ERROR {
		return Finished{}, errorFromStatus(finished.GetError())
	}
	reason, known := finishReasons[finished.GetReason()]
	if !known {
		return Finished{}, &ProtocolError{fmt.Sprintf("the server ended a choice with reason %d; is it newer than this client?", finished.GetReason())}
	}
	usage, timings := finished.GetUsage(), finished.GetTimings()
	result := Finished{
		Choice: int(choice),
		Reason: reason,
		Usage: Usage{
			PromptTokens:    int(usage.GetPromptTokens()),
			CachedTokens:    int(usage.GetCachedTokens()),
			GeneratedTokens: int(usage.GetGeneratedTokens()),
			DeliveredTokens: int(usage.GetDeliveredTokens()),
			DraftedTokens:   int(usage.GetDraftedTokens()),
			AcceptedTokens:  int(usage.GetAcceptedTokens()),
		},
		Timings: Timings{
			Queue:      timings.GetQueue().AsDuration(),
			Prefill:    timings.GetPrefill().AsDuration(),
			Decode:     timings.GetDecode().AsDuration(),
			Detokenize: timings.GetDetokenize().AsDuration(),
		},
	}
	switch matched := finished.GetMatchedStop().(type) {
	case *pb.Finished_StopTokenId:
		result.MatchedStop = StopToken(matched.StopTokenId)
	case *pb.Finished_StopString:
		result.MatchedStop = StopString(matched.StopString)
	}
	return result, nil
}

func logprobsFromProto(entries []*pb.TokenLogprobs) []TokenLogprobs {
	var result []TokenLogprobs
	for _, entry := range entries {
		position := TokenLogprobs{Chosen: logprobFromProto(entry.GetChosen()), TextOffset: int(entry.GetTextOffset())}
		for _, top := range entry.GetTop() {
			position.Top = append(position.Top, logprobFromProto(top))
		}
		result = append(result, position)
	}
	return result
}

func logprobFromProto(entry *pb.Logprob) Logprob {
	return Logprob{TokenID: entry.GetTokenId(), Logprob: entry.GetLogprob(), Token: entry.GetToken()}
}

func completionFromProto(response *pb.CompleteResponse) (*Completion, error) {
	if len(response.GetChoices()) == 0 {
		return nil, &ProtocolError{"the server sent an answer without a choice"}
	}
	result := &Completion{
		Accepted:       acceptedFromProto(response.GetAccepted()),
		PromptLogprobs: logprobsFromProto(response.GetPromptLogprobs()),
	}
	for index, choice := range response.GetChoices() {
		finished, err := finishedFromProto(choice.GetFinished(), uint32(index))
		if err != nil {
			return nil, err
		}
		result.Choices = append(result.Choices, Choice{
			Text:      choice.GetText(),
			TokenIDs:  choice.GetTokenIds(),
			Logprobs:  logprobsFromProto(choice.GetLogprobs()),
			Finished:  finished,
			Answer:    choice.GetAnswer(),
			Reasoning: choice.GetReasoning(),
		})
	}
	return result, nil
}

func modelInfoFromProto(info *pb.ModelInfo) *ModelInfo {
	return &ModelInfo{
		Name:                 info.GetName(),
		Architecture:         info.GetArchitecture(),
		VocabSize:            int(info.GetVocabSize()),
		ContextLength:        int(info.GetContextLength()),
		TrainedContextLength: int(info.GetTrainedContextLength()),
		EOGTokenIDs:          info.GetEogTokenIds(),
		VocabSHA256:          info.GetVocabSha256(),
		NumericsID:           info.GetNumericsId(),
		WeightBytes:          info.GetWeightBytes(),
		NumParameters:        info.GetNumParameters(),
		Device:               info.GetDevice(),
		Version:              info.GetVersion(),
		ChatTemplateOrigin:   templateOrigins[info.GetChatTemplateOrigin()],
	}
}
