/// Recorded shapes of responses, after the official SDKs' types.
enum Fixture {
  static let openAIStream = """
    data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"gpt-5-2026","service_tier":"default","choices":[{"index":0,"delta":{"role":"assistant","content":"","refusal":null},"logprobs":null,"finish_reason":null}],"usage":null,"obfuscation":"xx"}

    data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"gpt-5-2026","service_tier":"default","choices":[{"index":0,"delta":{"content":"Grüße, "},"finish_reason":null}],"usage":null}

    : keep-alive

    data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"gpt-5-2026","service_tier":"default","choices":[{"index":0,"delta":{"content":"martlet \\ud83d\\udc26!"},"finish_reason":null}],"usage":null}

    data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"gpt-5-2026","service_tier":"default","choices":[{"index":0,"delta":{},"finish_reason":"stop"}],"usage":null}

    data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"gpt-5-2026","service_tier":"default","choices":[],"usage":{"prompt_tokens":120,"completion_tokens":48,"total_tokens":168,"prompt_tokens_details":{"cached_tokens":64,"cache_write_tokens":32,"audio_tokens":0},"completion_tokens_details":{"reasoning_tokens":40,"rejected_prediction_tokens":0}}}

    data: [DONE]


    """

  static let openAITools = """
    data: {"id":"c2","model":"gpt-5","choices":[{"index":0,"delta":{"role":"assistant","content":null,"tool_calls":[{"index":0,"id":"call_a","type":"function","function":{"name":"weather","arguments":""}}]}}]}

    data: {"id":"c2","model":"gpt-5","choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"function":{"arguments":"{\\"city\\":"}}]}}]}

    data: {"id":"c2","model":"gpt-5","choices":[{"index":0,"delta":{"tool_calls":[{"index":1,"id":"call_b","type":"function","function":{"name":"time","arguments":""}}]}}]}

    data: {"id":"c2","model":"gpt-5","choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"function":{"arguments":"\\"Oslo\\"}"}}]}}]}

    data: {"id":"c2","model":"gpt-5","choices":[{"index":0,"delta":{},"finish_reason":"tool_calls"}]}

    data: {"id":"c2","model":"gpt-5","choices":[],"usage":{"prompt_tokens":10,"completion_tokens":20,"total_tokens":30}}

    data: [DONE]


    """

  static let openAIWhole = """
    {"id":"chatcmpl-9","object":"chat.completion","created":1,"model":"gpt-5-2026","choices":[{"index":0,
     "message":{"role":"assistant","content":"Four.","refusal":null,"annotations":[]},"logprobs":null,
     "finish_reason":"stop"}],"usage":{"prompt_tokens":9,"completion_tokens":3,"total_tokens":12},
     "service_tier":"flex","system_fingerprint":null}
    """

  static let anthropicStream = """
    event: message_start
    data: {"type":"message_start","message":{"id":"msg_1","type":"message","role":"assistant","model":"claude-x","content":[],"stop_reason":null,"stop_sequence":null,"usage":{"input_tokens":25,"cache_creation_input_tokens":300,"cache_read_input_tokens":1000,"cache_creation":{"ephemeral_5m_input_tokens":100,"ephemeral_1h_input_tokens":200},"output_tokens":1,"service_tier":"standard"}}}

    event: content_block_start
    data: {"type":"content_block_start","index":0,"content_block":{"type":"thinking","thinking":"","signature":""}}

    event: content_block_delta
    data: {"type":"content_block_delta","index":0,"delta":{"type":"thinking_delta","thinking":"Hmm."}}

    event: content_block_delta
    data: {"type":"content_block_delta","index":0,"delta":{"type":"signature_delta","signature":"EqQBCg=="}}

    event: content_block_stop
    data: {"type":"content_block_stop","index":0}

    event: ping
    data: {"type": "ping"}

    event: content_block_start
    data: {"type":"content_block_start","index":1,"content_block":{"type":"text","text":""}}

    event: content_block_delta
    data: {"type":"content_block_delta","index":1,"delta":{"type":"text_delta","text":"Hello, "}}

    event: content_block_delta
    data: {"type":"content_block_delta","index":1,"delta":{"type":"text_delta","text":"wörld 🐦"}}

    event: content_block_stop
    data: {"type":"content_block_stop","index":1}

    event: content_block_start
    data: {"type":"content_block_start","index":2,"content_block":{"type":"tool_use","id":"toolu_1","name":"weather","input":{}}}

    event: content_block_delta
    data: {"type":"content_block_delta","index":2,"delta":{"type":"input_json_delta","partial_json":""}}

    event: content_block_delta
    data: {"type":"content_block_delta","index":2,"delta":{"type":"input_json_delta","partial_json":"{\\"city\\": \\"Os"}}

    event: content_block_delta
    data: {"type":"content_block_delta","index":2,"delta":{"type":"input_json_delta","partial_json":"lo\\"}"}}

    event: content_block_stop
    data: {"type":"content_block_stop","index":2}

    event: content_block_start
    data: {"type":"content_block_start","index":3,"content_block":{"type":"tool_use","id":"toolu_2","name":"now","input":{}}}

    event: content_block_stop
    data: {"type":"content_block_stop","index":3}

    event: message_delta
    data: {"type":"message_delta","delta":{"stop_reason":"tool_use","stop_sequence":null},"usage":{"input_tokens":null,"cache_creation_input_tokens":null,"cache_read_input_tokens":null,"output_tokens":89,"output_tokens_details":{"thinking_tokens":30}}}

    event: message_stop
    data: {"type":"message_stop"}


    """

  static let anthropicWhole = """
    {"id":"msg_9","type":"message","role":"assistant","model":"claude-x","content":[{"type":"text",
     "text":"Four."},{"type":"tool_use","id":"toolu_9","name":"add","input":{"a":2,"b":[2,null]}}],
     "stop_reason":"end_turn","stop_sequence":null,"usage":{"input_tokens":9,"output_tokens":3,
     "cache_creation_input_tokens":null,"cache_read_input_tokens":0,"service_tier":"priority"}}
    """

  static let geminiLastChunk =
    #"data: {"candidates":[{"content":{"parts":[{"text":"","thoughtSignature":"U2lnMg=="}],"role":"model"},"finishReason":"STOP","index":0}],"usageMetadata":{"promptTokenCount":120,"cachedContentTokenCount":64,"candidatesTokenCount":8,"thoughtsTokenCount":40,"toolUsePromptTokenCount":10,"totalTokenCount":178,"promptTokensDetails":[{"modality":"TEXT","tokenCount":100},{"modality":"AUDIO","tokenCount":20}],"cacheTokensDetails":[{"modality":"AUDIO","tokenCount":4}],"serviceTier":"standard"},"modelVersion":"gemini-3-pro","responseId":"r-1"}"#

  static let geminiStream = """
    data: {"candidates":[{"content":{"parts":[{"text":"Hmm.","thought":true}],"role":"model"},"index":0}],"usageMetadata":{"promptTokenCount":120,"totalTokenCount":120},"modelVersion":"gemini-3-pro","responseId":"r-1"}\r
    \r
    data: {"candidates":[{"content":{"parts":[{"text":"Grüße, "}],"role":"model"},"index":0}],"usageMetadata":{"promptTokenCount":120,"candidatesTokenCount":2,"totalTokenCount":122},"modelVersion":"gemini-3-pro","responseId":"r-1"}\r
    \r
    data: {"candidates":[{"content":{"parts":[{"text":"martlet \\ud83d\\udc26!"},{"functionCall":{"id":"fc-1","name":"weather","args":{"city":"Oslo","days":[1,2]}},"thoughtSignature":"U2lnMQ=="}],"role":"model"},"index":0}],"modelVersion":"gemini-3-pro","responseId":"r-1"}\r
    \r
    data: {"candidates":[{"content":{"parts":[{"functionCall":{"name":"now"}}],"role":"model"},"index":0}],"modelVersion":"gemini-3-pro","responseId":"r-1"}\r
    \r
    \(geminiLastChunk)\r
    \r

    """

  static let geminiVectors =
    #"{"embeddings":[{"values":[0.25,-1]},{"values":[3,4e-2]}],"usageMetadata":{"promptTokenCount":5}}"#

  static let geminiWhole = """
    {"candidates":[{"content":{"parts":[{"text":"Four."}],"role":"model"},"finishReason":"STOP",
     "index":0,"safetyRatings":[]}],"usageMetadata":{"promptTokenCount":9,"candidatesTokenCount":3,
     "totalTokenCount":12,"serviceTier":"flex"},"modelVersion":"gemini-2.5-flash","responseId":"r-9"}
    """
}
