// Package clforge is the client of CLForge, which serves GGUF language models over gRPC.
//
// A [Client] is a connection. [Client.Generate] and [Client.Chat] stream events, [Client.Complete] returns whole answers, and a
// [Session] carries many requests on one stream. Errors are described at [Error]. Package clforgetest has a server for the tests
// of programs that use this package, and package clforgev1 the generated code.
package clforge
