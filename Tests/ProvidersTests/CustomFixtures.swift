/// Protocols of nobody, described as `ai.providers.options` describes them.
enum CustomFixture {
  /// Lines of JSON; a chat.
  static let quill = #"""
    {"custom": {"chat": {
      "path": "/v2/generate",
      "body": {"engine": "${model}", "system": "${system}", "turns": "${conversation}", "note": "-- ${model}: ${input} --",
        "settings": {"limit": "${max_tokens}", "heat": "${params.temperature}", "fixed": [1, "${params.seed}", null]}},
      "text": "result.text", "reasoning": "result.thought", "tool_calls": "result.calls", "finish": "result.why",
      "finish_reasons": {"eos": "stop", "limit": "length"}, "model": "engine", "request_id": "run",
      "usage": {"input": "meter.read", "output": "meter.written", "cache_read": "meter.known", "reasoning": "meter.thought", "beside": ["cache_read", "reasoning"]},
      "units": {"seconds": "meter.time"},
      "error": "problem", "error_message": "problem.says", "error_code": "problem.code",
      "stream": {"path": "/v2/generate?live=${params.live}", "body": {"live": "${stream}", "note": "${params.none}"}, "framing": "ndjson",
        "delta": "piece", "finish": "why", "tool_calls": "calls", "done": {"path": "end", "equals": true}}}}}
    """#

  static let lines = """
    {"piece":"Grüße, "}
    {"piece":null,"calls":[{"index":0,"id":"c1","function":{"name":"weather","arguments":"{\\"city\\":"}}]}
    {"piece":"martlet \\ud83d\\udc26!","calls":[{"index":0,"function":{"arguments":"1}"}}]}
    {"why":"eos","end":true,"meter":{"read":10,"written":5,"known":3,"thought":2,"time":1.25}}

    """

  static let whole = """
    {"run":"r-1","engine":"q-1.5","result":{"text":["Fo","ur."],"thought":"Hm.","why":"limit"},
     "problem":null,"meter":{"read":10,"written":5}}
    """

  /// Events with text that is no JSON, vectors, labels and jobs.
  static let heron = #"""
    {"poll_ms": 10, "auth": "x-heron-key", "custom": {
      "chat": {"body": {"text": "${prompt}", "...": "${params}"}, "text": "$", "model": "m",
        "stream": {"framing": "sse", "delta": "$", "done": {"marker": "[OVER]"}}},
      "embedding": {"path": "/${model}/embed", "body": {"texts": "${inputs}"}, "vectors": "data[*].v", "usage": {"input": "tokens"}},
      "classification": {"body": {"text": "${input}", "among": "${params.labels}"}, "results": "found", "label": "name", "score": "p"},
      "rerank": {"body": {"query": "${input}", "documents": "${params.documents}"}, "results": "ranks", "index": "at", "score": "s"},
      "completion": {"body": {"text": "${input}"}, "text": "output[*]", "error_message": "detail",
        "poll": {"path": "/jobs/${id}", "id": "id", "status": "state", "done": ["ready"], "failed": ["broken"],
          "result_path": "/jobs/${id}/result", "cancel_path": "/jobs/${id}", "cancel_method": "DELETE"}}}}
    """#

  /// Text that is no JSON. Cut off, its end would be text, too; only whole events are read.
  static let text = """
    data: Hello,

    : keep-alive

    data:  wörld 🐦

    data: {"not": "parsed"}

    data: [OVER]


    """

  static let egret = #"""
    {"custom": {"chat": {"body": {"text": "${prompt}"}, "text": "t", "model": "by",
      "stream": {"framing": "sse", "delta": "t[*].s", "finish": "why", "done": {"marker": "[OVER]"}}}}}
    """#

  static let events = """
    data: {"by":"e-1","t":[{"s":"Hello, "},{"s":"wö"}]}

    : keep-alive

    event: piece
    data: {"by":"e-1","t":[{"s":"rld \\ud83d\\udc26"}],"why":"eos"}

    data: [OVER]


    """
}
