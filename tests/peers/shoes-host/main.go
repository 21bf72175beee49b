// Does what myshoes does with its plugin, by the same library: one process of the plugin for a call.
//
//	shoes-host -plugin /path/to/mayfly [-timeout 300s] ping
//	shoes-host -plugin … [-resource-type 5] [-labels a,b] add NAME SCRIPT_FILE
//	shoes-host -plugin … delete CLOUD_ID
//
// Prints the pid of the plugin as soon as it runs, and then the answer: each as a line of JSON. Exits with 3 if the call
// failed, with 4 if the plugin had to be killed or was slow to end, with 1 for everything else.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const key = "shoes_grpc"

// After Shutdown, go-plugin waits two seconds and then kills. Each call of myshoes pays for that.
const slowEnd = time.Second

type shoesPlugin struct {
	plugin.Plugin
}

func (shoesPlugin) GRPCServer(*plugin.GRPCBroker, *grpc.Server) error {
	return nil
}

func (shoesPlugin) GRPCClient(_ context.Context, _ *plugin.GRPCBroker, connection *grpc.ClientConn) (any, error) {
	return connection, nil
}

type line map[string]any

func show(what line) {
	text, err := json.Marshal(what)
	if err != nil {
		fail(err)
	}
	fmt.Println(string(text))
}

func fail(why any) {
	fmt.Fprintln(os.Stderr, "shoes-host:", why)
	os.Exit(1)
}

func main() {
	program := flag.String("plugin", "", "the plugin")
	timeout := flag.Duration("timeout", 5*time.Minute, "deadline of the call")
	resourceType := flag.Int("resource-type", 1, "number of the resource type")
	labels := flag.String("labels", "self-hosted,linux", "labels of the job")
	flag.Parse()
	if *program == "" || flag.NArg() == 0 {
		flag.Usage()
		os.Exit(1)
	}

	client := plugin.NewClient(&plugin.ClientConfig{
		HandshakeConfig: plugin.HandshakeConfig{
			ProtocolVersion:  1,
			MagicCookieKey:   "SHOES_PLUGIN_MAGIC_COOKIE",
			MagicCookieValue: "are_you_a_shoes?",
		},
		Plugins:          map[string]plugin.Plugin{key: shoesPlugin{}},
		Cmd:              exec.Command(*program),
		Managed:          true,
		Stderr:           os.Stderr,
		SyncStdout:       os.Stderr,
		SyncStderr:       os.Stderr,
		AllowedProtocols: []plugin.Protocol{plugin.ProtocolGRPC},
	})
	protocol, err := client.Client()
	if err != nil {
		fail(err)
	}
	show(line{"pid": client.ReattachConfig().Pid})
	raw, err := protocol.Dispense(key)
	if err != nil {
		fail(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), *timeout)
	var answer line
	connection := raw.(*grpc.ClientConn)
	switch flag.Arg(0) {
	case "ping":
		answer, err = line{}, protocol.Ping()
	case "add":
		script, failed := os.ReadFile(flag.Arg(2))
		if failed != nil {
			fail(failed)
		}
		answer, err = add(ctx, connection, flag.Arg(1), string(script), *resourceType, strings.Split(*labels, ","))
	case "delete":
		answer, err = remove(ctx, connection, flag.Arg(1))
	default:
		fail("unknown command " + flag.Arg(0))
	}
	cancel()

	begun := time.Now()
	client.Kill()
	took := time.Since(begun)
	code := codes.OK
	if err != nil {
		code = status.Code(err)
		answer = line{"message": status.Convert(err).Message()}
	}
	answer["code"] = code.String()
	answer["end_ms"] = took.Milliseconds()
	show(answer)
	switch {
	case took > slowEnd:
		os.Exit(4)
	case err != nil:
		os.Exit(3)
	}
}
