package clforge

import (
	"fmt"
	"unicode/utf8"

	pb "clforge.dev/clforge/clforgev1"
	"google.golang.org/protobuf/types/known/structpb"
)

const maxNesting = 30 // of objects and lists; servers read messages that are not much deeper

// Prompt is what to continue: a [Text], a [Chat] or [TokenIDs].
type Prompt interface {
	promptProto() (*pb.Prompt, error)
}

// Text is a plain text. Special tokens spelled in it stay text.
type Text string

// TokenIDs are taken as they are.
type TokenIDs []uint32

// Chat is a conversation, which the server renders with the model's own chat template. Special tokens spelled in it stay
// text.
type Chat struct {
	Messages []Message // the turns, oldest first
	// Tools are JSON-schema descriptions of callable tools.
	Tools []map[string]any
	// TemplateKwargs are further variables of the template, such as "enable_thinking", or "add_generation_prompt", which is
	// true unless given.
	TemplateKwargs map[string]any
}

// Message is one turn of a conversation. Role is "system", "user", "assistant" or "tool"; the others are set where they
// apply.
type Message struct {
	Role             string
	Content          string
	Name             string
	ToolCalls        []map[string]any
	ToolCallID       string
	ReasoningContent string
}

// System is a turn that tells the model how to behave.
func System(content string) Message { return Message{Role: "system", Content: content} }

// User is a turn of the user's.
func User(content string) Message { return Message{Role: "user", Content: content} }

// Assistant is a turn of the model's.
func Assistant(content string) Message { return Message{Role: "assistant", Content: content} }

func (t Text) promptProto() (*pb.Prompt, error) {
	if err := checkUTF8("text", string(t)); err != nil {
		return nil, err
	}
	return &pb.Prompt{Kind: &pb.Prompt_Text{Text: string(t)}}, nil
}

func (ids TokenIDs) promptProto() (*pb.Prompt, error) {
	return &pb.Prompt{Kind: &pb.Prompt_TokenIds{TokenIds: &pb.TokenIds{Ids: ids}}}, nil
}

func (c Chat) promptProto() (*pb.Prompt, error) {
	chat, err := c.toProto()
	if err != nil {
		return nil, err
	}
	return &pb.Prompt{Kind: &pb.Prompt_Chat{Chat: chat}}, nil
}

func (c Chat) toProto() (*pb.Chat, error) {
	result := &pb.Chat{}
	for index, turn := range c.Messages {
		message, err := turn.toProto(fmt.Sprintf("messages[%d]", index))
		if err != nil {
			return nil, err
		}
		result.Messages = append(result.Messages, message)
	}
	var err error
	if result.Tools, err = structs("tools", c.Tools); err != nil {
		return nil, err
	}
	if c.TemplateKwargs != nil {
		if result.TemplateKwargs, err = newStruct("template_kwargs", c.TemplateKwargs); err != nil {
			return nil, err
		}
	}
	return result, nil
}

func (m Message) toProto(field string) (*pb.ChatMessage, error) {
	for _, text := range []string{m.Role, m.Content, m.Name, m.ToolCallID, m.ReasoningContent} {
		if err := checkUTF8(field, text); err != nil {
			return nil, err
		}
	}
	calls, err := structs(field+".tool_calls", m.ToolCalls)
	if err != nil {
		return nil, err
	}
	return &pb.ChatMessage{
		Role:             m.Role,
		Content:          m.Content,
		Name:             m.Name,
		ToolCalls:        calls,
		ToolCallId:       m.ToolCallID,
		ReasoningContent: m.ReasoningContent,
	}, nil
}

func structs(field string, objects []map[string]any) ([]*structpb.Struct, error) {
	var result []*structpb.Struct
	for index, object := range objects {
		item, err := newStruct(fmt.Sprintf("%s[%d]", field, index), object)
		if err != nil {
			return nil, err
		}
		result = append(result, item)
	}
	return result, nil
}

func newStruct(field string, object map[string]any) (*structpb.Struct, error) {
	if isTooDeep(object, maxNesting) {
		return nil, invalid(field, "has objects and lists nested more than %d deep", maxNesting)
	}
	result, err := structpb.NewStruct(object)
	if err != nil {
		return nil, invalid(field, "must be an object of JSON's types: %v", err)
	}
	return result, nil
}

// isTooDeep tells whether objects and lists within value are nested more than limit deep.
func isTooDeep(value any, limit int) bool {
	if limit < 0 {
		return true
	}
	switch value := value.(type) {
	case map[string]any:
		for _, item := range value {
			if isTooDeep(item, limit-1) {
				return true
			}
		}
	case []any:
		for _, item := range value {
			if isTooDeep(item, limit-1) {
				return true
			}
		}
	}
	return false
}

func checkUTF8(field, text string) error {
	if !utf8.ValidString(text) {
		return invalid(field, "is not UTF-8; it cannot be sent as text")
	}
	return nil
}
