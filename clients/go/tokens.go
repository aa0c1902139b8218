package clforge

import (
	"context"
	"fmt"

	pb "clforge.dev/clforge/clforgev1"
	"google.golang.org/protobuf/proto"
)

// Offset tells which part of a text a token stands for: its characters Start up to but not including End. They are counted in
// Unicode characters, as in []rune(text). Characters of several tokens belong to each of them; a token without any, such as one
// that was added or left out, has Start == End.
type Offset struct {
	Start int
	End   int
}

// Encoding is the token ids of a text, and, where asked for, what each of them was made from.
type Encoding struct {
	TokenIDs []uint32
	Offsets  []Offset
}

// Decoding is the text of token ids, and, where asked for, the characters of it of which each has a byte.
type Decoding struct {
	Text    string
	Offsets []Offset
}

// WithEncodeOffsets asks for [Encoding] Offsets.
func WithEncodeOffsets() EncodeOption {
	return func(r *pb.EncodeRequest) { r.WithOffsets = proto.Bool(true) }
}

// WithDecodeOffsets asks for [Decoding] Offsets.
func WithDecodeOffsets() DecodeOption {
	return func(r *pb.DecodeRequest) { r.WithOffsets = proto.Bool(true) }
}

// EncodeBatch returns the token ids of up to 1024 texts, in order.
func (c *Client) EncodeBatch(ctx context.Context, texts []string, options ...EncodeOption) ([]Encoding, error) {
	for index, text := range texts {
		if err := checkUTF8(fmt.Sprintf("texts[%d]", index), text); err != nil {
			return nil, err
		}
	}
	request := &pb.EncodeRequest{Texts: texts}
	for _, option := range options {
		option(request)
	}
	if err := checkSize("texts", request); err != nil {
		return nil, err
	}
	response, err := ask(ctx, c, c.stub.Encode, request)
	if err != nil {
		return nil, err
	}
	if err := checkCount(len(texts), len(response.GetSequences())); err != nil {
		return nil, err
	}
	result := make([]Encoding, len(texts))
	for index, sequence := range response.GetSequences() {
		result[index].TokenIDs = sequence.GetIds()
		if request.GetWithOffsets() {
			if result[index].Offsets, err = offsetsOf(response.GetOffsets(), index, len(sequence.GetIds())); err != nil {
				return nil, err
			}
		}
	}
	return result, nil
}

// DecodeBatch returns the texts of up to 1024 lists of token ids, in order. Bytes that are not UTF-8 become U+FFFD.
func (c *Client) DecodeBatch(ctx context.Context, sequences [][]uint32, options ...DecodeOption) ([]Decoding, error) {
	request := &pb.DecodeRequest{}
	for _, ids := range sequences {
		request.Sequences = append(request.Sequences, &pb.TokenIds{Ids: ids})
	}
	for _, option := range options {
		option(request)
	}
	if err := checkSize("sequences", request); err != nil {
		return nil, err
	}
	response, err := ask(ctx, c, c.stub.Decode, request)
	if err != nil {
		return nil, err
	}
	if err := checkCount(len(sequences), len(response.GetTexts())); err != nil {
		return nil, err
	}
	result := make([]Decoding, len(sequences))
	for index, text := range response.GetTexts() {
		result[index].Text = text
		if request.GetWithOffsets() {
			if result[index].Offsets, err = offsetsOf(response.GetOffsets(), index, len(sequences[index])); err != nil {
				return nil, err
			}
		}
	}
	return result, nil
}

// offsetsOf returns those of one text, which has so many tokens.
func offsetsOf(all []*pb.TokenOffsets, index, numTokens int) ([]Offset, error) {
	if index >= len(all) || len(all[index].GetStarts()) != numTokens || len(all[index].GetEnds()) != numTokens {
		return nil, &ProtocolError{"the server did not tell the offsets of each token; is it older than this client?"}
	}
	result := make([]Offset, numTokens)
	for token, start := range all[index].GetStarts() {
		result[token] = Offset{Start: int(start), End: int(all[index].GetEnds()[token])}
	}
	return result, nil
}

func checkCount(expected, answered int) error {
	if answered != expected {
		return &ProtocolError{fmt.Sprintf("the server answered %d items with %d", expected, answered)}
	}
	return nil
}

// checkSize refuses what gRPC would call an overloaded server, and what would end a session's stream.
func checkSize(field string, messages ...proto.Message) error {
	size := envelopeBytes
	for _, message := range messages {
		size += proto.Size(message)
	}
	if size > maxMessageBytes {
		return invalid(field, "makes a message of %d bytes; at most %d can be sent", size, maxMessageBytes)
	}
	return nil
}
