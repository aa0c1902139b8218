package clforge

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/netip"
	"os"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
)

const insecureProtocol = "insecure" // as gRPC names credentials that are none

// WithTLS secures the connection; nil trusts the system's authorities. [TLSConfig] makes one from files.
func WithTLS(config *tls.Config) ClientOption {
	return WithTransportCredentials(credentials.NewTLS(config))
}

// WithAPIKey sends a key with every call. New refuses to send it beyond this machine without TLS.
func WithAPIKey(key string) ClientOption {
	return func(o *clientOptions) { o.apiKey = key }
}

// TLSConfig reads PEM files: the authorities that may vouch for the server, where not those of the system, and the certificate
// and its key for a server that asks for one. Empty names are left out. The error is ErrInvalidRequest.
func TLSConfig(ca, cert, key string) (*tls.Config, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if ca != "" {
		pem, err := os.ReadFile(ca)
		if err != nil {
			return nil, invalid("ca", "cannot be read: %v", err)
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(pem) {
			return nil, invalid("ca", "is %q, which holds no certificates in PEM format", ca)
		}
	}
	if cert != "" || key != "" {
		pair, err := tls.LoadX509KeyPair(cert, key)
		if err != nil {
			return nil, invalid("cert", "and key are no certificate and its private key: %v", err)
		}
		config.Certificates = []tls.Certificate{pair}
	}
	return config, nil
}

// keyOptions returns what sends the key, or the error of a key that must not be sent to target.
func (o *clientOptions) keyOptions(target string) ([]grpc.DialOption, error) {
	if o.apiKey == "" {
		return nil, nil
	}
	if o.credentials.Info().SecurityProtocol == insecureProtocol && !staysOnThisMachine(target) {
		e := invalid("api_key", "would travel to %s in plain text; connect by TLS", target)
		e.Reason = "KEY_IN_PLAIN_TEXT"
		return nil, e
	}
	return []grpc.DialOption{grpc.WithPerRPCCredentials(bearer(o.apiKey))}, nil
}

func staysOnThisMachine(target string) bool {
	if strings.HasPrefix(target, "unix:") || strings.HasPrefix(target, "unix-abstract:") {
		return true
	}
	endpoint := target[strings.LastIndex(target, "/")+1:]
	host, _, err := net.SplitHostPort(endpoint)
	if err != nil {
		host = endpoint
	}
	address, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && address.IsLoopback()
}

// bearer is a key as gRPC's credentials of each call.
type bearer string

func (b bearer) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": "Bearer " + string(b)}, nil
}

// RequireTransportSecurity is false: where the key may go in plain text is for keyOptions to say.
func (bearer) RequireTransportSecurity() bool { return false }
