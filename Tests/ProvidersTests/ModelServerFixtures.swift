import Providers

/// Recorded shapes of what Ollama, TGI, TEI and Hugging Face send, after the types of the official SDKs
/// and the servers' own.
extension Fixture {
  static let ollamaStream = #"""
    {"model":"qwen3:8b","created_at":"2026-11-21T10:00:00.1Z","message":{"role":"assistant","content":"","thinking":"Hmm, "},"done":false}
    {"model":"qwen3:8b","created_at":"2026-11-21T10:00:00.2Z","message":{"role":"assistant","content":"","thinking":"a bird."},"done":false}
    {"model":"qwen3:8b","created_at":"2026-11-21T10:00:00.3Z","message":{"role":"assistant","content":"Grüße, "},"done":false}
    {"model":"qwen3:8b","created_at":"2026-11-21T10:00:00.4Z","message":{"role":"assistant","content":"martlet \ud83d\udc26!"},"done":false}
    {"model":"qwen3:8b","created_at":"2026-11-21T10:00:00.5Z","message":{"role":"assistant","content":""},"done":true,"done_reason":"stop","total_duration":5043500667,"load_duration":5025959,"prompt_eval_count":26,"prompt_eval_duration":325953000,"eval_count":48,"eval_duration":4709213000}

    """#

  static let ollamaTools = #"""
    {"model":"qwen3:8b","created_at":"2026-11-21T10:00:00.1Z","message":{"role":"assistant","content":"","tool_calls":[{"id":"call_a","function":{"index":0,"name":"weather","arguments":{"city":"Oslo","days":[1,2]}}}]},"done":false}
    {"model":"qwen3:8b","created_at":"2026-11-21T10:00:00.2Z","message":{"role":"assistant","content":"","tool_calls":[{"function":{"name":"time","arguments":{}}}]},"done":false}
    {"model":"qwen3:8b","created_at":"2026-11-21T10:00:00.3Z","message":{"role":"assistant","content":""},"done":true,"done_reason":"stop","prompt_eval_count":169,"eval_count":15}

    """#

  static let ollamaGenerate = #"""
    {"model":"llama3.2","created_at":"2026-11-21T10:00:00.1Z","response":"The ","done":false}
    {"model":"llama3.2","created_at":"2026-11-21T10:00:00.2Z","response":"end","done":false}
    {"model":"llama3.2","created_at":"2026-11-21T10:00:00.3Z","response":"","done":true,"done_reason":"length","context":[1,2,3],"prompt_eval_count":4,"eval_count":2}

    """#

  static let ollamaWhole = #"""
    {"model":"qwen3:8b","created_at":"2026-11-21T10:00:00Z","message":{"role":"assistant","content":"Four.",
     "thinking":"2 + 2"},"done_reason":"stop","done":true,"prompt_eval_count":9,"eval_count":3}
    """#

  static let ollamaVectors = #"""
    {"model":"all-minilm","embeddings":[[0.25,-0.5,1e-3],[1,0,0.5]],"total_duration":1,"load_duration":1,"prompt_eval_count":8}
    """#

  static let tgiStream = #"""
    data:{"index":1,"token":{"id":791,"text":"Grüße","logprob":-0.3,"special":false},"generated_text":null,"details":null}

    data:{"index":2,"token":{"id":40,"text":", 🐦","logprob":-0.2,"special":false},"generated_text":null,"details":null}

    :

    data:{"index":3,"token":{"id":2,"text":"</s>","logprob":-0.1,"special":true},"generated_text":"Grüße, 🐦","details":{"finish_reason":"eos_token","generated_tokens":3,"input_length":7,"seed":42}}


    """#

  static let tgiWhole = #"""
    {"generated_text":"Four.","details":{"finish_reason":"length","generated_tokens":3,"seed":null,"prefill":[],
     "tokens":[{"id":1,"text":"Four","logprob":-0.1,"special":false},{"id":2,"text":".","logprob":null,"special":false}]}}
    """#

  static let teiVectors = "[[0.25,-0.5,0.125],[1,0,0.5]]"
  static let teiRanks =
    #"[{"index":1,"score":0.997},{"index":2,"score":0.5},{"index":0,"score":0.0001}]"#
  static let hfTokens = "[[[1,2],[3,4],[5,6]],[[2,2]]]"
  static let hfLabels = #"[[{"label":"NEGATIVE","score":0.25},{"label":"POSITIVE","score":0.75}]]"#
}

/// Requests of the kinds that have no messages.
enum KindRequest {
  static let text = #"{"input": "To be", "params": {}}"#
  static let texts = #"{"input": ["a", "b"], "params": {}}"#
  static let rerank =
    #"{"input": "Who flies?", "params": {"documents": ["stone", {"text": "swift"}, "log"]}}"#

  /// A request that uses most of what a kind can say.
  static let everything: [(dialect: String, kind: CallKind, request: String)] = [
    (
      "openai", .completion,
      #"{"input": "def f(", "params": {"suffix": ")", "max_tokens": 5, "stop": "x", "echo": true, "logprobs": 2, "seed": 1, "n": 1}}"#
    ),
    (
      "openai", .rerank,
      #"{"input": "q", "params": {"documents": ["a", {"text": "b"}], "top_n": 1, "return_documents": true}}"#
    ),
    (
      "openai", .moderation,
      #"{"input": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}]}, {"role": "user", "content": "b"}], "params": {"user": "u"}}"#
    ),
    (
      "ollama", .completion,
      #"{"input": "def f(", "params": {"suffix": ")", "max_tokens": 5, "stop": "x", "top_k": 3, "raw": true, "user": "u", "options": {"num_ctx": 64}}}"#
    ),
    (
      "ollama", .embedding, #"{"input": ["a", "b"], "params": {"dimensions": 3, "truncate": true}}"#
    ),
    (
      "tgi", .completion,
      #"{"input": "To be", "params": {"max_tokens": 5, "temperature": 0.5, "top_p": 0.9, "stop": ["a", "b"], "seed": 1, "response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "object"}}}, "logit_bias": {}}}"#
    ),
    ("tei", .embedding, #"{"input": "a", "params": {"normalize": true, "user": "u"}}"#),
    ("tei", .rerank, rerank), ("tei", .classification, text),
    ("huggingface", .completion, text),
    ("huggingface", .embedding, #"{"input": ["a"], "params": {"prompt_name": "query"}}"#),
    (
      "huggingface", .classification,
      #"{"input": "x", "params": {"labels": ["a", "b"], "multi_label": true}}"#
    ),
    ("huggingface", .rerank, rerank),
  ]
}
