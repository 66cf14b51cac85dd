package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"
)

// process is a server or a load as the one that measures sees it: a line goes
// in, a line comes out.
type process struct {
	name string
	cmd  *exec.Cmd
	in   *os.File // its stdin
	out  *os.File // its stdout
	buf  *bufio.Reader
}

func startProcess(name string, argv []string) (*process, error) {
	childIn, in, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	out, childOut, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = childIn, childOut, os.Stderr
	err = cmd.Start()
	childIn.Close()
	childOut.Close()
	if err != nil {
		in.Close()
		out.Close()
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return &process{name, cmd, in, out, bufio.NewReader(out)}, nil
}

// stop ends it, and waits for its end. One that has to be killed fails.
func (p *process) stop() error {
	const atMost = 5 * time.Second
	p.in.Close()
	kill := time.AfterFunc(atMost, func() { p.cmd.Process.Kill() })
	err := p.cmd.Wait()
	p.out.Close()
	switch {
	case !kill.Stop():
		return fmt.Errorf("%s did not end within %v", p.name, atMost)
	case err != nil:
		return fmt.Errorf("%s ended with %w", p.name, err)
	}
	return nil
}

// ask sends a line and returns the numbers of the answer.
func (p *process) ask(format string, args ...any) ([]int64, error) {
	if _, err := fmt.Fprintf(p.in, format+"\n", args...); err != nil {
		return nil, fmt.Errorf("%s died: %w", p.name, err)
	}
	numbers, err := p.hear()
	if err != nil {
		return nil, fmt.Errorf("%q: %w", fmt.Sprintf(format, args...), err)
	}
	return numbers, nil
}

// number is ask for the first number of the answer.
func (p *process) number(format string, args ...any) (int64, error) {
	numbers, err := p.ask(format, args...)
	if err == nil && len(numbers) == 0 {
		err = fmt.Errorf("%s answered nothing", p.name)
	}
	if err != nil {
		return 0, err
	}
	return numbers[0], nil
}

const answerAtMost = 3 * time.Minute

func (p *process) hear() ([]int64, error) {
	p.out.SetReadDeadline(time.Now().Add(answerAtMost))
	line, err := p.buf.ReadString('\n')
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return nil, fmt.Errorf("%s does not answer", p.name)
	case err != nil:
		return nil, fmt.Errorf("%s died", p.name)
	}
	var numbers []int64
	for _, word := range strings.Fields(line) {
		n, err := strconv.ParseInt(word, 10, 64)
		if err != nil {
			return nil, fmt.Errorf("%s says %s", p.name, strings.TrimSpace(line))
		}
		numbers = append(numbers, n)
	}
	return numbers, nil
}
