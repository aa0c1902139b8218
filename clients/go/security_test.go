package clforge_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"clforge.dev/clforge"
	pb "clforge.dev/clforge/clforgev1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
)

// authority vouches for certificates; made anew for each test.
type authority struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	path string
}

func newAuthority(t *testing.T) *authority {
	a := &authority{t: t, path: filepath.Join(t.TempDir(), "ca.pem")}
	template := &x509.Certificate{IsCA: true, BasicConstraintsValid: true, Subject: pkix.Name{CommonName: "test"}}
	der := a.sign(template, template, time.Now().Add(time.Hour))
	a.cert, _ = x509.ParseCertificate(der)
	writePEM(t, a.path, "CERTIFICATE", der)
	return a
}

// sign makes a new key, which becomes the authority's own where it signs itself, and a certificate for it.
func (a *authority) sign(template, parent *x509.Certificate, ends time.Time) []byte {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	if a.key == nil {
		a.key = key
	}
	template.SerialNumber, template.NotBefore, template.NotAfter = big.NewInt(time.Now().UnixNano()), time.Unix(0, 0), ends
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	bytes, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	writePEM(a.t, a.path+".key", "PRIVATE KEY", bytes)
	return der
}

// issue returns the files of a certificate for a host and of its key.
func (a *authority) issue(host string, ends time.Time) (cert, key string) {
	template := &x509.Certificate{DNSNames: []string{host}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	if host != "localhost" {
		template.IPAddresses = nil
	}
	cert = a.path + ".crt"
	writePEM(a.t, cert, "CERTIFICATE", a.sign(template, a.cert, ends))
	return cert, a.path + ".key"
}

func writePEM(t *testing.T, path, kind string, der []byte) {
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
}

// whoCalls answers every call with the key that came with it.
type whoCalls struct {
	pb.UnimplementedTokenizerServiceServer
}

func (whoCalls) GetModelInfo(ctx context.Context, _ *pb.GetModelInfoRequest) (*pb.GetModelInfoResponse, error) {
	headers, _ := metadata.FromIncomingContext(ctx)
	return &pb.GetModelInfoResponse{ModelInfo: &pb.ModelInfo{Name: strings.Join(headers.Get("authorization"), " ")}}, nil
}

// listen starts a server on a port, by TLS where there is a configuration, and returns its address.
func listen(t *testing.T, config *tls.Config) string {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var options []grpc.ServerOption
	if config != nil {
		options = append(options, grpc.Creds(credentials.NewTLS(config)))
	}
	server := grpc.NewServer(options...)
	pb.RegisterTokenizerServiceServer(server, whoCalls{})
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(server.Stop)
	return listener.Addr().String()
}

func (a *authority) serverConfig(host string, ends time.Time) *tls.Config {
	pair, err := tls.LoadX509KeyPair(a.issue(host, ends))
	if err != nil {
		a.t.Fatal(err)
	}
	return &tls.Config{Certificates: []tls.Certificate{pair}}
}

func (a *authority) clientConfig() *tls.Config {
	config, err := clforge.TLSConfig(a.path, "", "")
	if err != nil {
		a.t.Fatal(err)
	}
	return config
}

// ask returns the name that the server gives its model.
func ask(t *testing.T, target string, options ...clforge.ClientOption) (string, error) {
	client, err := clforge.New(target, options...)
	if err != nil {
		return "", err
	}
	defer client.Close()
	info, err := client.ModelInfo(testContext(t))
	if err != nil {
		return "", err
	}
	return info.Name, nil
}

// A key goes with the calls of a connection by TLS, and of one that stays on this machine.
func TestAPIKeyIsSent(t *testing.T) {
	a := newAuthority(t)
	secured := listen(t, a.serverConfig("localhost", time.Now().Add(time.Hour)))
	if name, err := ask(t, secured, clforge.WithTLS(a.clientConfig()), clforge.WithAPIKey("k")); name != "Bearer k" || err != nil {
		t.Errorf("by TLS: %q, %v", name, err)
	}
	if name, err := ask(t, listen(t, nil), clforge.WithAPIKey("k")); name != "Bearer k" || err != nil {
		t.Errorf("on this machine: %q, %v", name, err)
	}
}

// A key that would leave this machine in plain text is refused before anything is sent.
func TestAPIKeyIsNotSentInPlainText(t *testing.T) {
	for _, target := range []string{"example.org:50051", "dns:///clforge:50051", "10.0.0.1:1", "[2001:db8::1]:1"} {
		_, err := clforge.New(target, clforge.WithAPIKey("k"))
		if !errors.Is(err, clforge.ErrInvalidRequest) || !strings.Contains(err.Error(), "in plain text") {
			t.Errorf("%s: %v", target, err)
		}
	}
}

// Each way in which the two sides do not fit is ErrTLS, with what is wrong in words, and comes at once.
func TestEachMismatchIsErrTLS(t *testing.T) {
	a, stranger := newAuthority(t), newAuthority(t)
	later := time.Now().Add(time.Hour)
	mutual := a.serverConfig("localhost", later)
	mutual.ClientAuth, mutual.ClientCAs = tls.RequireAndVerifyClientCert, a.clientConfig().RootCAs
	trusting := clforge.WithTLS(a.clientConfig())
	for name, c := range map[string]struct {
		server  *tls.Config
		options []clforge.ClientOption
		message string
	}{
		"plain client":       {a.serverConfig("localhost", later), nil, "may take TLS only"},
		"plain server":       {nil, []clforge.ClientOption{trusting}, "does not look like a TLS handshake"},
		"unknown authority":  {stranger.serverConfig("localhost", later), []clforge.ClientOption{trusting}, "unknown authority"},
		"expired":            {a.serverConfig("localhost", time.Now().Add(-time.Hour)), []clforge.ClientOption{trusting}, "has expired"},
		"another name":       {a.serverConfig("example.org", later), []clforge.ClientOption{trusting}, "x509"},
		"client certificate": {mutual, []clforge.ClientOption{trusting}, "certificate"},
	} {
		_, err := ask(t, listen(t, c.server), c.options...)
		var unreachable *clforge.UnreachableError
		if !errors.Is(err, clforge.ErrTLS) || !errors.As(err, &unreachable) || !strings.Contains(err.Error(), c.message) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Nobody there is not ErrTLS.
func TestNobodyThereIsNoMatterOfTLS(t *testing.T) {
	_, err := ask(t, "127.0.0.1:1", clforge.WithTLS(newAuthority(t).clientConfig()))
	var unreachable *clforge.UnreachableError
	if !errors.As(err, &unreachable) || errors.Is(err, clforge.ErrTLS) {
		t.Errorf("%v", err)
	}
}

// A certificate is shown to a server that asks for one.
func TestMutualTLS(t *testing.T) {
	a := newAuthority(t)
	server := a.serverConfig("localhost", time.Now().Add(time.Hour))
	server.ClientAuth, server.ClientCAs = tls.RequireAndVerifyClientCert, a.clientConfig().RootCAs
	target := listen(t, server)
	cert, key := a.issue("client", time.Now().Add(time.Hour))
	config, err := clforge.TLSConfig(a.path, cert, key)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ask(t, target, clforge.WithTLS(config)); err != nil {
		t.Error(err)
	}
}

// Files that cannot be used are named.
func TestTLSConfigNamesWhatIsWrong(t *testing.T) {
	a := newAuthority(t)
	for _, files := range [][3]string{{"missing"}, {a.path + ".key"}, {a.path, a.path, ""}} {
		if _, err := clforge.TLSConfig(files[0], files[1], files[2]); !errors.Is(err, clforge.ErrInvalidRequest) {
			t.Errorf("%v: %v", files, err)
		}
	}
}

// PERMISSION_DENIED is a kind of its own, and one of authentication.
func TestPermissionDeniedIsAuthenticationToo(t *testing.T) {
	denied, unknown := &clforge.StatusError{Code: codes.PermissionDenied}, &clforge.StatusError{Code: codes.Unauthenticated}
	if !errors.Is(denied, clforge.ErrPermissionDenied) || !errors.Is(denied, clforge.ErrAuthentication) {
		t.Error("PERMISSION_DENIED is not both kinds")
	}
	if errors.Is(unknown, clforge.ErrPermissionDenied) || !errors.Is(unknown, clforge.ErrAuthentication) {
		t.Error("UNAUTHENTICATED is not ErrAuthentication alone")
	}
}
