package clforge_test

import (
	"bufio"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"clforge.dev/clforge"
)

const serverStart = 2 * time.Minute // the first start on a machine builds kernels

// Against a real server with the bundled model: every call works, the same request gives the same text by every door, and
// failures come with their field.
func TestRealServer(t *testing.T) {
	address := startServer(t)
	client, err := clforge.New(address)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(t.Context(), serverStart)
	defer cancel()
	if err := client.WaitForReady(ctx); err != nil {
		t.Fatal(err)
	}

	prompt := clforge.Text("Once upon a time")
	greedy := []clforge.GenerateOption{clforge.WithTemperature(0), clforge.WithMaxTokens(24)}
	whole, err := client.Complete(ctx, prompt, greedy...)
	if err != nil || whole.Text() == "" {
		t.Fatalf("got %+v, %v", whole, err)
	}
	streamed, finished, err := collect(client.Generate(ctx, prompt, greedy...))
	if err != nil || streamed != whole.Text() || finished.Usage.DeliveredTokens == 0 {
		t.Errorf("streamed %q, %+v, %v; whole %q", streamed, finished, err, whole.Text())
	}

	t.Run("session", func(t *testing.T) { realSession(ctx, t, client, prompt, whole.Text(), greedy) })
	t.Run("tokens", func(t *testing.T) { realTokens(ctx, t, client) })
	t.Run("chat", func(t *testing.T) {
		text, _, err := collect(client.Chat(ctx, []clforge.Message{clforge.User("What day comes 3 days after Friday?")}, greedy...))
		if err != nil || !strings.Contains(text, "Monday") {
			t.Errorf("got %q, %v", text, err)
		}
	})
	t.Run("readme", func(t *testing.T) { runReadme(ctx, t, address) })
	t.Run("failure", func(t *testing.T) {
		_, _, err := collect(client.Generate(ctx, prompt, clforge.WithTopP(7)))
		var refused *clforge.StatusError
		if !errors.As(err, &refused) || !errors.Is(err, clforge.ErrInvalidRequest) || !strings.HasSuffix(refused.Field, "top_p") {
			t.Errorf("error is %#v", err)
		}
		if _, err := client.Complete(ctx, prompt, clforge.WithModel("another")); !errors.Is(err, clforge.ErrNotFound) {
			t.Errorf("error is %v", err)
		}
	})
}

func realSession(ctx context.Context, t *testing.T, client *clforge.Client, prompt clforge.Prompt, want string, greedy []clforge.GenerateOption) {
	session, err := client.NewSession(ctx, clforge.WithWindow(4))
	if err != nil {
		t.Fatal(err)
	}
	defer session.Close()
	cancelled, err := session.Submit(ctx, prompt, clforge.WithIgnoreEOS())
	if err != nil {
		t.Fatal(err)
	}
	inParallel(8, func(int) {
		if text, _, err := collect(session.Generate(ctx, prompt, greedy...)); err != nil || text != want {
			t.Errorf("got %q, %v; want %q", text, err, want)
		}
	})
	cancelled.Cancel()
	if _, finished, err := collect(cancelled.Events(ctx)); err != nil || finished.Reason != clforge.FinishCancelled {
		t.Errorf("got %+v, %v", finished, err)
	}
	if text, _, err := collect(session.Generate(ctx, prompt, greedy...)); err != nil || text != want {
		t.Errorf("got %q, %v; want %q", text, err, want)
	}
}

func realTokens(ctx context.Context, t *testing.T, client *clforge.Client) {
	info, err := client.ModelInfo(ctx)
	if err != nil || info.VocabSize == 0 || info.ContextLength == 0 {
		t.Fatalf("got %+v, %v", info, err)
	}
	ids, err := client.Encode(ctx, "Once upon a time", clforge.WithAddSpecial(false))
	if err != nil || len(ids) == 0 {
		t.Fatalf("got %v, %v", ids, err)
	}
	if text, err := client.Decode(ctx, ids); err != nil || strings.TrimSpace(text) != "Once upon a time" {
		t.Errorf("got %q, %v", text, err)
	}
	rendered, err := client.RenderChat(ctx, clforge.Chat{Messages: []clforge.Message{clforge.User("Hello")}})
	if err != nil || !strings.Contains(rendered.Text, "Hello") || len(rendered.TokenIDs) == 0 {
		t.Errorf("got %+v, %v", rendered, err)
	}
}

// runReadme runs the program in README.md, as it stands there but for the address.
func runReadme(ctx context.Context, t *testing.T, address string) {
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, found := strings.Cut(string(readme), "```go\n")
	program, _, ended := strings.Cut(rest, "```")
	if !found || !ended || !strings.Contains(program, clforge.DefaultTarget) {
		t.Fatal("README.md has no program with the default address")
	}
	file := filepath.Join(t.TempDir(), "main.go")
	if err := os.WriteFile(file, []byte(strings.Replace(program, clforge.DefaultTarget, address, 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	if output, err := exec.CommandContext(ctx, "go", "run", file).CombinedOutput(); err != nil || len(output) < 50 {
		t.Errorf("it said %q, %v", output, err)
	}
}

// startServer runs `clforge serve` on a Unix socket until the test ends, and returns its address.
func startServer(t *testing.T) string {
	if testing.Short() {
		t.Skip("-short: no real server")
	}
	command, err := findServer()
	if err != nil {
		t.Skipf("no clforge to test against (%v): run make setup in the repository", err)
	}
	folder, err := os.MkdirTemp("", "clforge") // t.TempDir is too long for a socket's path
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(folder) })
	address := "unix:" + filepath.Join(folder, "s")
	server := exec.Command(command, "serve", "--grpc", address)
	var complaints strings.Builder
	server.Stderr = &complaints
	output, err := server.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	tooLong := time.AfterFunc(serverStart, func() { _ = server.Process.Kill() })
	line, readErr := bufio.NewReader(output).ReadString('\n')
	tooLong.Stop()
	t.Cleanup(func() {
		_ = server.Process.Signal(syscall.SIGTERM)
		_ = server.Wait()
	})
	if readErr != nil || !strings.HasPrefix(line, "ready ") {
		_ = server.Process.Kill()
		_ = server.Wait()
		t.Fatalf("clforge serve said %q\n%s", line, complaints.String())
	}
	return address
}

// findServer returns the clforge of the repository's virtual environment, else the one on the path.
func findServer() (string, error) {
	ours, err := filepath.Abs("../../.venv/bin/clforge")
	if err != nil {
		return "", err
	}
	if _, err := os.Stat(ours); err == nil {
		return ours, nil
	}
	return exec.LookPath("clforge")
}
