"""LitServe with its OpenAI specification in front of a model that says the question again, a word at a time. Ends by a signal.

    python lit.py PORT
"""

import sys

import litserve


class Echo(litserve.LitAPI):
    def setup(self, device):
        pass

    def predict(self, request):
        words = request.messages[-1].content.split()
        for number, word in enumerate(words, 1):
            said = {"role": "assistant", "content": f"{word} "}
            # It adds them up without a stream, and takes the last of one.
            if number == len(words):
                said |= {"prompt_tokens": number, "completion_tokens": number, "total_tokens": 2 * number}
            yield said


if __name__ == "__main__":
    server = litserve.LitServer(Echo(spec=litserve.OpenAISpec()), accelerator="cpu")
    server.run(host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False)
