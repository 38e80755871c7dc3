import Testing

@testable import ProviderSimulator

@Suite("Directives")
struct DirectiveTests {
  private func parsed(_ text: String) throws -> Directives {
    var directives = Directives()
    try directives.apply(text)
    return directives
  }

  @Test("every key of the documentation is understood")
  func everyKey() throws {
    let directives = try parsed(
      """
      latency=5;ttft=7;rate=12.5;tokens=9;answer=a%20b+%22c%22;usage=input:1000,cached:200,\
      write:100,write1h:50,output:70,reasoning:30;finish=length;model=other;tier=flex;tool=f,g;\
      args=%7B%22a%22%3A1%7D;surrogate;nul;dims=8;tag=t;drip=3;big=77
      """)
    #expect(directives.latency == 5)
    #expect(directives.timeToFirstToken == 7)
    #expect(directives.tokensPerSecond == 12.5)
    #expect(directives.tokenCount == 9)
    #expect(directives.answerText == "a b \"c\"")
    #expect(directives.answer == Array(#"a b \"c\""#.utf8))
    #expect(directives.usage.input == 1000)
    #expect(directives.usage.cached == 200)
    #expect(directives.usage.write5m == 100)
    #expect(directives.usage.write1h == 50)
    #expect(directives.usage.output == 70)
    #expect(directives.usage.reasoning == 30)
    #expect(directives.finish == "length")
    #expect(directives.reportedModel == "other")
    #expect(directives.serviceTier == "flex")
    #expect(directives.tools == ["f", "g"])
    #expect(directives.toolArguments == #"{"a":1}"#)
    #expect(directives.loneSurrogate && directives.nulCharacter)
    #expect(directives.dimensions == 8)
    #expect(directives.tag == "t")
    #expect(directives.dripInterval == 3)
    #expect(directives.bigBytes == 77)
    #expect(!directives.hasFault)
    #expect(directives.faultName == nil)
  }

  @Test(
    "each fault is one and has a name",
    arguments: [
      ("status=529", "status"), ("hang", "hang"), ("reset", "reset"), ("html", "html"),
      ("empty", "empty"), ("malformed", "malformed"), ("embedded_error", "embedded_error"),
      ("hang_after=0", "hang_after"), ("reset_after=3", "reset_after"),
      ("truncate_after=3", "truncate_after"), ("end_after=3", "end_after"),
    ])
  func faults(_ text: String, _ name: String) throws {
    var directives = try parsed(text)
    #expect(directives.hasFault)
    #expect(directives.faultName == name)
    directives.clearFault()
    #expect(!directives.hasFault)
    #expect(directives.faultName == nil)
  }

  @Test("a later layer overrides single fields, and clear drops everything before it")
  func layers() throws {
    var directives = try parsed("latency=5;status=500;usage=input:1,cached:2")
    try directives.apply(" status = 429 ; usage=input:3 ")
    #expect(directives.latency == 5)
    #expect(directives.status == 429)
    #expect(directives.usage.input == 3)
    #expect(directives.usage.cached == 2)
    try directives.apply("clear;ttft=1")
    var expected = Directives()
    expected.timeToFirstToken = 1
    #expect(directives == expected)
  }

  @Test(
    "what is not understood is refused, not guessed",
    arguments: [
      "statsu=500", "status", "status=200", "status=600", "status=x", "latency=-1",
      "latency=99999999999999999999", "rate=nan", "rate=-1", "rate=inf", "tokens=0",
      "tokens=1000001", "big=0", "big=999999999999", "answer", "answer=%4", "answer=%zz",
      "answer=%ff", "usage=input", "usage=inputs:1", "usage=input:-1", "usage=input:1,,bogus:2",
      "args=[1]", "args={", "args={}x", "surrogate=maybe", "retry_after=soon", "times=-1",
      "chance=101", "=5", "drip=0", "dims=0", "should_retry=perhaps",
    ])
  func refused(_ text: String) {
    #expect(throws: DirectiveError.self) { try parsed(text) }
  }

  @Test("empty parts and spaces mean nothing", arguments: ["", ";", " ; ;", "   "])
  func nothing(_ text: String) throws {
    #expect(try parsed(text) == Directives())
  }

  @Test("any answer survives percent encoding", arguments: Dice.seeds)
  func answersSurvive(seed: UInt64) throws {
    var dice = Dice(seed: seed)
    for _ in 0..<200 {
      let text = dice.text(upTo: 40)
      let encoded = text.utf8.map { "%" + ($0 < 16 ? "0" : "") + String($0, radix: 16) }.joined()
      let directives = try parsed("latency=1;answer=\(encoded);ttft=2")
      #expect(directives.answerText == text, "seed \(seed)")
      #expect(directives.timeToFirstToken == 2, "seed \(seed)")
    }
  }

  @Test("random input is parsed or refused, and never traps", arguments: Dice.seeds)
  func randomInput(seed: UInt64) {
    var dice = Dice(seed: seed)
    let pieces = [
      "status", "=", ";", "429", "usage", ":", ",", "input", "%", "%4", "+", "times", "hang",
      "clear", "-", "é", "args", "{", "}", "\"", " ", "answer", "retry_after", "none", "date",
    ]
    for _ in 0..<2_000 {
      var text = ""
      for _ in 0..<dice.roll(0...10) { text += dice.pick(pieces) }
      var directives = Directives()
      do throws(DirectiveError) {
        try directives.apply(text)
      } catch {
        #expect(!error.description.isEmpty, "seed \(seed): \(text)")
      }
    }
  }
}
