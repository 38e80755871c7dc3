/// An answer that never comes as a stream: it has begun when it is there, and ends only when it is whole.
protocol WholeAnswer: AnswerAssembler {}

extension WholeAnswer {
  static var streams: Bool { false }
  var hasBegun: Bool { isComplete }
  var mayEnd: Bool { false }
  mutating func event(named name: String?, _ json: JSON) -> String { "" }
}
