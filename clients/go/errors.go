package clforge

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// Error is implemented by every error that this package makes:
//
//	Error
//	├── *UnreachableError     no server answers at the address; ErrTLS: one does, but a secure connection cannot be made
//	├── *ConnectionLostError  the connection broke after the server had begun to answer
//	├── *ProtocolError        the server said what it must not
//	└── *StatusError          the server refused or failed; one of the kinds ErrInvalidRequest … ErrServer
//
// Find out which with [errors.As], and of which kind a StatusError is with [errors.Is].
type Error interface {
	error
	clforgeError()
}

// The kinds of StatusError, for [errors.Is].
var (
	// ErrInvalidRequest is INVALID_ARGUMENT and OUT_OF_RANGE: a parameter is out of its range, or the prompt does not fit
	// the served context. Also returned before anything is sent.
	ErrInvalidRequest = errors.New("invalid request")
	// ErrNotFound is NOT_FOUND: no such request or model.
	ErrNotFound = errors.New("not found")
	// ErrFailedPrecondition is FAILED_PRECONDITION, ALREADY_EXISTS and ABORTED: the server is not in the state that the
	// request needs.
	ErrFailedPrecondition = errors.New("failed precondition")
	// ErrOverloaded is RESOURCE_EXHAUSTED: too many requests or tokens wait, or this one was never read.
	ErrOverloaded = errors.New("overloaded")
	// ErrUnavailable is UNAVAILABLE, said by the server itself: it loads, drains, or has lost its engine.
	ErrUnavailable = errors.New("unavailable")
	// ErrDeadline is DEADLINE_EXCEEDED: time ran out. Where the context's deadline did, the error is
	// [context.DeadlineExceeded] too.
	ErrDeadline = errors.New("deadline exceeded")
	// ErrCancelled is CANCELLED. Where the context was cancelled, the error is [context.Canceled] too; else somebody else
	// cancelled.
	ErrCancelled = errors.New("cancelled")
	// ErrAuthentication is UNAUTHENTICATED, the API key is missing, unknown, expired or revoked, and PERMISSION_DENIED.
	ErrAuthentication = errors.New("authentication")
	// ErrPermissionDenied is PERMISSION_DENIED alone: the API key is good, but may not do this.
	ErrPermissionDenied = errors.New("permission denied")
	// ErrUnimplemented is UNIMPLEMENTED: this server, model or device lacks what was asked for.
	ErrUnimplemented = errors.New("unimplemented")
	// ErrServer is INTERNAL, UNKNOWN and DATA_LOSS: the server failed; its log tells more.
	ErrServer = errors.New("server error")
)

var kinds = map[codes.Code]error{
	codes.InvalidArgument:    ErrInvalidRequest,
	codes.OutOfRange:         ErrInvalidRequest,
	codes.NotFound:           ErrNotFound,
	codes.FailedPrecondition: ErrFailedPrecondition,
	codes.AlreadyExists:      ErrFailedPrecondition,
	codes.Aborted:            ErrFailedPrecondition,
	codes.ResourceExhausted:  ErrOverloaded,
	codes.Unavailable:        ErrUnavailable,
	codes.DeadlineExceeded:   ErrDeadline,
	codes.Canceled:           ErrCancelled,
	codes.Unauthenticated:    ErrAuthentication,
	codes.PermissionDenied:   ErrPermissionDenied,
	codes.Unimplemented:      ErrUnimplemented,
}

// UnreachableError says that no server answers at Target.
type UnreachableError struct {
	Target string
	Err    error // what the transport said
}

// ErrTLS is the kind of an [UnreachableError] where somebody answers, but one side speaks TLS and the other not, or one does
// not trust the other. A server that hangs up on the first that is sent is taken for such a one.
var ErrTLS = errors.New("no secure connection")

// Is tells whether target is ErrTLS and the error is of that kind.
func (e *UnreachableError) Is(target error) bool { return target == ErrTLS && tlsCause(e.Err) != "" }

// Error returns a message for a user, with the remedy.
func (e *UnreachableError) Error() string {
	if cause := tlsCause(e.Err); cause != "" {
		return fmt.Sprintf("no secure connection to %s: %s", e.Target, cause)
	}
	return fmt.Sprintf("no server answers at %s (%s); start one with: clforge serve; or give its address", e.Target, transportCause(e.Err))
}

// Unwrap returns what the transport said.
func (e *UnreachableError) Unwrap() error { return e.Err }

// ConnectionLostError says that the connection to Target broke after the server had begun to answer, or that a session was
// closed. What had arrived stays valid.
type ConnectionLostError struct {
	Target string
	Err    error // what the transport said
}

// Error returns a message for a user.
func (e *ConnectionLostError) Error() string {
	return fmt.Sprintf("the connection to %s broke (%s); the server may have stopped", e.Target, transportCause(e.Err))
}

// Unwrap returns what the transport said.
func (e *ConnectionLostError) Unwrap() error { return e.Err }

// ProtocolError says that the server broke the protocol, for instance by leaving out an update.
type ProtocolError struct {
	Message string
}

// Error returns the message.
func (e *ProtocolError) Error() string { return e.Message }

// StatusError says that the server refused or failed a request, or that a request could not even be sent.
type StatusError struct {
	Code    codes.Code
	Message string
	Reason  string // a stable word for programs, such as QUEUE_FULL; UNKNOWN where the server gives none
	Field   string // the request's field at fault; empty where there is none

	retry *errdetails.RetryInfo
	err   error // of the context, where it ended
}

// Error returns the server's message, which is meant for a user.
func (e *StatusError) Error() string { return e.Message }

// Is tells whether target is the error's kind: ErrInvalidRequest, ErrNotFound and so on.
func (e *StatusError) Is(target error) bool {
	kind, known := kinds[e.Code]
	if !known {
		kind = ErrServer
	}
	return target == kind || kind == ErrPermissionDenied && target == ErrAuthentication
}

// Unwrap returns the context's error where the context ended, else nil.
func (e *StatusError) Unwrap() error { return e.err }

// RetryAfter returns how long to wait before trying again; false where the server does not invite to.
func (e *StatusError) RetryAfter() (time.Duration, bool) {
	return e.retry.GetRetryDelay().AsDuration(), e.retry != nil
}

// GRPCStatus returns the code and the message, for [status.FromError] and [status.Code].
func (e *StatusError) GRPCStatus() *status.Status { return status.New(e.Code, e.Message) }

func (*UnreachableError) clforgeError()    {}
func (*ConnectionLostError) clforgeError() {}
func (*ProtocolError) clforgeError()       {}
func (*StatusError) clforgeError()         {}

// errorFromStatus returns the error of a status, with what ErrorInfo, BadRequest and RetryInfo among its details say.
func errorFromStatus(s *spb.Status) *StatusError {
	e := &StatusError{Code: codes.Code(s.GetCode()), Message: s.GetMessage(), Reason: "UNKNOWN"}
	if e.Message == "" {
		e.Message = "the server failed with " + e.Code.String()
	}
	var info errdetails.ErrorInfo
	if unpack(s.GetDetails(), &info) && info.GetReason() != "" {
		e.Reason = info.GetReason()
	}
	var badRequest errdetails.BadRequest
	if unpack(s.GetDetails(), &badRequest) && len(badRequest.GetFieldViolations()) > 0 {
		e.Field = badRequest.GetFieldViolations()[0].GetField()
	}
	var retry errdetails.RetryInfo
	if unpack(s.GetDetails(), &retry) {
		e.retry = &retry
	}
	return e
}

// unpack fills message from the first detail of its type, and tells whether there is one.
func unpack(details []*anypb.Any, message proto.Message) bool {
	for _, detail := range details {
		if detail.MessageIs(message) {
			return detail.UnmarshalTo(message) == nil
		}
	}
	return false
}

// errorFromRPC returns the error that ended an RPC to target. answered tells whether the server had sent anything.
// UNAVAILABLE without details comes from the transport: a server's own always has ErrorInfo.
func errorFromRPC(ctx context.Context, err error, target string, answered bool) Error {
	if ctx.Err() != nil {
		return errorFromContext(ctx)
	}
	s := status.Convert(err)
	if s.Code() == codes.Unavailable && len(s.Proto().GetDetails()) == 0 {
		if answered {
			return &ConnectionLostError{Target: target, Err: err}
		}
		return &UnreachableError{Target: target, Err: err}
	}
	e := errorFromStatus(s.Proto())
	if e.Code == codes.DeadlineExceeded { // the server's clock ran ahead of the context's
		e.err = context.DeadlineExceeded
	}
	return e
}

func errorFromContext(ctx context.Context) *StatusError {
	s := status.FromContextError(ctx.Err())
	message := "the context ended before the answer did: " + s.Message()
	return &StatusError{Code: s.Code(), Message: message, Reason: "CONTEXT", err: ctx.Err()}
}

// transportCause is the point of `connection error: desc = "transport: Error while dialing: dial tcp …: connect: refused"`.
func transportCause(err error) string {
	message := status.Convert(err).Message()
	if _, cause, found := strings.Cut(message, "Error while dialing: "); found {
		return strings.TrimSuffix(cause, `"`)
	}
	return message
}

// tlsCause is what went wrong between two sides of which one, at least, speaks TLS; empty where it was something else.
func tlsCause(err error) string {
	message := status.Convert(err).Message()
	if _, cause, found := strings.Cut(message, "authentication handshake failed: "); found {
		return strings.TrimSuffix(cause, `"`)
	}
	// By TLS 1.3 a server refuses a certificate when the client already writes.
	for _, sign := range []string{"error reading server preface: ", "failed to write client preface: ", "write: broken pipe"} {
		if strings.Contains(message, sign) {
			return "the server hangs up; it may take TLS only, or ask for the client's certificate"
		}
	}
	return ""
}

// invalid returns an error for a parameter that cannot even be sent.
func invalid(field, format string, args ...any) *StatusError {
	message := field + " " + fmt.Sprintf(format, args...)
	return &StatusError{Code: codes.InvalidArgument, Message: message, Reason: "BAD_PARAMETER", Field: field}
}
