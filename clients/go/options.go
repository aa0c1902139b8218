package clforge

import (
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
)

// ClientOption changes how a Client connects.
type ClientOption func(*clientOptions)

type clientOptions struct {
	connect     time.Duration
	retryBudget time.Duration
	credentials credentials.TransportCredentials
	apiKey      string
	dial        []grpc.DialOption
}

// WithConnectTimeout limits one attempt to connect. Default 5 s.
func WithConnectTimeout(timeout time.Duration) ClientOption {
	return func(o *clientOptions) { o.connect = timeout }
}

// WithRetryBudget limits for how long a refused call is tried again; 0 never does. Default 30 s.
func WithRetryBudget(budget time.Duration) ClientOption {
	return func(o *clientOptions) { o.retryBudget = budget }
}

// WithTransportCredentials secures the connection by other means than [WithTLS]. Default: plain text.
func WithTransportCredentials(transport credentials.TransportCredentials) ClientOption {
	return func(o *clientOptions) { o.credentials = transport }
}

// WithDialOptions adds options of gRPC's own, such as interceptors; they win over this package's.
func WithDialOptions(options ...grpc.DialOption) ClientOption {
	return func(o *clientOptions) { o.dial = append(o.dial, options...) }
}

func (o *clientOptions) dialOptions(target string) []grpc.DialOption {
	reconnect := backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 3 * time.Second}
	options := []grpc.DialOption{
		grpc.WithTransportCredentials(o.credentials),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessageBytes), grpc.MaxCallSendMsgSize(maxMessageBytes)),
		// A prefill may send nothing for long.
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: time.Minute, Timeout: 20 * time.Second}),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: reconnect, MinConnectTimeout: o.connect}),
		grpc.WithNoProxy(),      // a proxy for the web is not meant for an inference server
		grpc.WithDisableRetry(), // only the server's RetryInfo invites to try again
	}
	if strings.HasPrefix(target, "dns:") {
		options = append(options, grpc.WithDefaultServiceConfig(`{"loadBalancingConfig": [{"round_robin": {}}]}`))
	}
	return append(options, o.dial...)
}
