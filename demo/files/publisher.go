package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log"
	"net/http"
	"time"
)

type Task struct {
	Model    string         `json:"model"`
	Input    map[string]any `json:"input"`
	Priority int            `json:"priority,omitempty"`
}

func submit(client *http.Client, api string, task Task) (string, error) {
	body, err := json.Marshal(task)
	if err != nil {
		return "", err
	}
	response, err := client.Post(api+"/v1/tasks", "application/json", bytes.NewReader(body))
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusAccepted {
		return "", fmt.Errorf("not accepted: %s", response.Status)
	}
	return response.Header.Get("Location"), nil
}

func main() {
	client := &http.Client{Timeout: 5 * time.Second}
	for i := 0; i < 10; i++ {
		task := Task{Model: "pause", Input: map[string]any{"service_ms": i}}
		location, err := submit(client, "http://127.0.0.1:8080", task)
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(location)
	}
}
