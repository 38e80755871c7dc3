import Providers

extension Fixture {
  static let groqStream = """
    data: {"id":"chatcmpl-g","object":"chat.completion.chunk","created":1,"model":"openai/gpt-oss-20b","service_tier":"on_demand","choices":[{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}],"x_groq":{"id":"req_1","seed":7}}

    data: {"id":"chatcmpl-g","object":"chat.completion.chunk","created":1,"model":"openai/gpt-oss-20b","choices":[{"index":0,"delta":{"reasoning":"Hm. "},"finish_reason":null}]}

    data: {"id":"chatcmpl-g","object":"chat.completion.chunk","created":1,"model":"openai/gpt-oss-20b","choices":[{"index":0,"delta":{"content":"Vögel "},"finish_reason":null}]}

    data: {"id":"chatcmpl-g","object":"chat.completion.chunk","created":1,"model":"openai/gpt-oss-20b","choices":[{"index":0,"delta":{"content":"🐦"},"finish_reason":null}]}

    data: {"id":"chatcmpl-g","object":"chat.completion.chunk","created":1,"model":"openai/gpt-oss-20b","choices":[{"index":0,"delta":{},"finish_reason":"stop"}],"x_groq":{"id":"req_1","usage":{"queue_time":0.01,"prompt_tokens":90,"prompt_time":0.002,"completion_tokens":21,"completion_time":0.03,"total_tokens":111,"total_time":0.04,"prompt_tokens_details":{"cached_tokens":64},"completion_tokens_details":{"reasoning_tokens":12}}}}

    data: [DONE]


    """

  static let openRouterStream = """
    : OPENROUTER PROCESSING

    : OPENROUTER PROCESSING

    data: {"id":"gen-1","provider":"P","model":"x/y","object":"chat.completion.chunk","created":1,"choices":[{"index":0,"delta":{"role":"assistant","content":"Hel"},"finish_reason":null,"native_finish_reason":null,"logprobs":null}]}

    : OPENROUTER PROCESSING

    data: {"id":"gen-1","provider":"P","model":"x/y","object":"chat.completion.chunk","created":1,"choices":[{"index":0,"delta":{"role":"assistant","content":"lo"},"finish_reason":"stop","native_finish_reason":"end_turn","logprobs":null}]}

    data: {"id":"gen-1","provider":"P","model":"x/y","object":"chat.completion.chunk","created":1,"choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}],"usage":{"prompt_tokens":12,"completion_tokens":2,"total_tokens":14,"cost":0.0000185,"is_byok":false,"prompt_tokens_details":{"cached_tokens":0,"audio_tokens":0},"cost_details":{"upstream_inference_cost":null}}}

    data: [DONE]


    """

  static let deepSeekStream = """
    : keep-alive

    data: {"id":"d1","object":"chat.completion.chunk","created":1,"model":"deepseek-reasoner","choices":[{"index":0,"delta":{"role":"assistant","content":null,"reasoning_content":""},"logprobs":null,"finish_reason":null}],"usage":null}

    data: {"id":"d1","object":"chat.completion.chunk","created":1,"model":"deepseek-reasoner","choices":[{"index":0,"delta":{"content":null,"reasoning_content":"Nun ja"},"logprobs":null,"finish_reason":null}],"usage":null}

    data: {"id":"d1","object":"chat.completion.chunk","created":1,"model":"deepseek-reasoner","choices":[{"index":0,"delta":{"content":"Vier.","reasoning_content":null},"logprobs":{"content":[{"token":"Vier","logprob":-0.1,"bytes":[86],"top_logprobs":[]},{"token":".","logprob":-2e-1,"bytes":null,"top_logprobs":[]}]},"finish_reason":null}],"usage":null}

    data: {"id":"d1","object":"chat.completion.chunk","created":1,"model":"deepseek-reasoner","choices":[{"index":0,"delta":{"content":"","reasoning_content":null},"logprobs":null,"finish_reason":"length"}],"usage":{"prompt_tokens":30,"completion_tokens":9,"total_tokens":39,"prompt_cache_hit_tokens":20,"prompt_cache_miss_tokens":10,"completion_tokens_details":{"reasoning_tokens":5}}}

    data: [DONE]


    """

  static let openAICompletion = """
    data: {"id":"cmpl-1","object":"text_completion","created":1,"model":"davinci-003","choices":[{"text":" and","index":0,"logprobs":{"tokens":[" and"],"token_logprobs":[-0.5],"top_logprobs":null,"text_offset":[0]},"finish_reason":null}],"usage":null}

    data: {"id":"cmpl-1","object":"text_completion","created":1,"model":"davinci-003","choices":[{"text":" fliegt über","index":0,"logprobs":{"tokens":[" fliegt"," über"],"token_logprobs":[-0.25,null],"top_logprobs":null,"text_offset":[4,11]},"finish_reason":null}],"usage":null}

    data: {"id":"cmpl-1","object":"text_completion","created":1,"model":"davinci-003","choices":[{"text":"","index":0,"logprobs":null,"finish_reason":"length"}],"usage":null}

    data: {"id":"cmpl-1","object":"text_completion","created":1,"model":"davinci-003","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4,"total_tokens":7}}

    data: [DONE]


    """

  static let moderation = """
    {"id":"modr-1","model":"omni-moderation-2024","results":[{"flagged":true,"categories":{"hate":false,"violence":true,"self-harm":true},
     "category_scores":{"hate":1.2e-5,"violence":0.93,"self-harm":0.5},"category_applied_input_types":{"hate":["text"],"violence":["text"],"self-harm":["text"]}}]}
    """

  static let ranks = """
    {"id":"rr-1","object":"rerank","model":"rank-1","results":[{"index":2,"relevance_score":0.12,"document":{"text":"log"}},
     {"index":1,"relevance_score":0.98},{"index":0,"relevance_score":0.120}],"usage":{"prompt_tokens":31,"completion_tokens":0,"total_tokens":31}}
    """
}

extension Recording {
  /// Hosts that speak like OpenAI, and its kinds beside chats and embeddings.
  static let hosts = [
    Recording(
      dialect: "openai", stream: true, body: Fixture.groqStream, terminal: "data: [DONE]",
      mayEnd: #""completion_tokens_details":{"reasoning_tokens":12}}}}"#),
    Recording(
      dialect: "openai", stream: true, body: Fixture.openRouterStream, terminal: "data: [DONE]",
      mayEnd: #""native_finish_reason":"end_turn","logprobs":null}]}"#),
    Recording(
      dialect: "openai", stream: true, body: Fixture.deepSeekStream, terminal: "data: [DONE]",
      mayEnd: #""completion_tokens_details":{"reasoning_tokens":5}}}"#),
    Recording(
      dialect: "openai", kind: .completion, stream: true, body: Fixture.openAICompletion,
      terminal: "data: [DONE]", mayEnd: #""finish_reason":"length"}],"usage":null}"#),
    Recording(
      dialect: "openai", kind: .moderation, stream: false, body: Fixture.moderation,
      terminal: "}\n"),
    Recording(
      dialect: "openai", kind: .rerank, request: KindRequest.rerank, stream: false,
      body: Fixture.ranks, terminal: "}\n"),
  ]
}
