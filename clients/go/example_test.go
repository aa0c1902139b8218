package clforge_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"sync"
	"time"

	"clforge.dev/clforge"
	"clforge.dev/clforge/clforgetest"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// exampleClient stands for clforge.New(clforge.DefaultTarget): the examples run without a model.
func exampleClient() (*clforgetest.Server, *clforge.Client) {
	server := clforgetest.NewServer(func(string) []string { return []string{"there", " was", " a", " fox"} })
	return server, server.Client()
}

func ExampleNew() {
	client, err := clforge.New("unix:/run/clforge/clforge.sock", clforge.WithConnectTimeout(time.Second))
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
}

func ExampleClient_Generate() {
	server, client := exampleClient()
	defer server.Close()
	defer client.Close()

	for event, err := range client.Generate(context.Background(), clforge.Text("Once upon a time"), clforge.WithMaxTokens(3)) {
		if err != nil {
			log.Fatal(err)
		}
		switch event := event.(type) {
		case clforge.Delta:
			fmt.Print(event.Text)
		case clforge.Finished:
			fmt.Println(":", event.Reason)
		}
	}
	// Output: there was a: length
}

func ExampleClient_Chat() {
	server, client := exampleClient()
	defer server.Close()
	defer client.Close()

	turns := []clforge.Message{clforge.System("You tell stories."), clforge.User("Of a fox, please.")}
	for event, err := range client.Chat(context.Background(), turns, clforge.WithTemperature(0)) {
		if err != nil {
			log.Fatal(err)
		}
		if delta, ok := event.(clforge.Delta); ok {
			fmt.Print(delta.Text)
		}
	}
	// Output: there was a fox
}

func ExampleClient_Complete() {
	server, client := exampleClient()
	defer server.Close()
	defer client.Close()

	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	answer, err := client.Complete(ctx, clforge.Text("Once upon a time"))
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(answer.Text())
	// Output: there was a fox
}

func ExampleClient_NewSession() {
	server, client := exampleClient()
	defer server.Close()
	defer client.Close()

	ctx := context.Background()
	session, err := client.NewSession(ctx)
	if err != nil {
		log.Fatal(err)
	}
	defer session.Close()

	var running sync.WaitGroup
	answers := make([]int, 8)
	for i := range answers {
		running.Add(1)
		go func() {
			defer running.Done()
			for event, err := range session.Generate(ctx, clforge.Text(fmt.Sprint("Question ", i))) {
				if err != nil {
					log.Print(err)
				} else if delta, ok := event.(clforge.Delta); ok {
					answers[i] += delta.NumTokens
				}
			}
		}()
	}
	running.Wait()
	fmt.Println(answers)
	// Output: [4 4 4 4 4 4 4 4]
}

func ExampleStatusError() {
	server, client := exampleClient()
	defer server.Close()
	defer client.Close()
	server.Fail(status.New(codes.OutOfRange, "the prompt has 9000 tokens; the served context holds 4096"))

	_, err := client.Complete(context.Background(), clforge.Text("A long story"))
	if errors.Is(err, clforge.ErrInvalidRequest) {
		fmt.Println(err)
	}
	var refused *clforge.StatusError
	if errors.As(err, &refused) {
		fmt.Println(refused.Code)
	}
	// Output:
	// the prompt has 9000 tokens; the served context holds 4096
	// OutOfRange
}
