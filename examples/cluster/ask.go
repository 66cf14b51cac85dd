package main

// What the parent asks of a node, over HTTP.

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"time"
)

// push has a node push. An error: there is no receipt, because the node ended
// meanwhile.
func (f *fleet) push(ctx context.Context, id string, o order) (a answer, err error) {
	f.mu.Lock()
	f.nodes[id].Pushes++
	f.mu.Unlock()
	err = f.ask(ctx, id, "POST", "/control/push", o, &a)
	return a, err
}

func (f *fleet) situation(ctx context.Context, id string) (s situation, err error) {
	ctx, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
	defer cancel()
	err = f.ask(ctx, id, "GET", "/control/situation", nil, &s)
	return s, err
}

// ask sends a request to a node and reads the answer into out.
func (f *fleet) ask(ctx context.Context, id, method, path string, in, out any) error {
	f.mu.Lock()
	host := f.nodes[id].at.HTTP
	f.mu.Unlock()
	body, err := json.Marshal(in)
	if err != nil {
		return err
	}
	r, err := http.NewRequestWithContext(ctx, method, "http://"+host+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	r.Header.Set("Authorization", "Bearer "+f.token)
	resp, err := f.http.Do(r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 200))
		return fmt.Errorf("%s: %s", resp.Status, bytes.TrimSpace(text))
	}
	if out == nil {
		return nil
	}
	return json.NewDecoder(resp.Body).Decode(out)
}
