import Testing

@testable import Worker

@Suite(.timeLimit(.minutes(1))) struct WakeTests {
  @Test("a signal before the wait ends it at once, and several count as one")
  func kept() async {
    let wake = Wake()
    wake.signal()
    wake.signal()
    await wake.wait()
    await wake.wait(until: .now + .milliseconds(5))
  }

  @Test("a wait ends with its deadline, its signal, or its task")
  func ends() async {
    let wake = Wake()
    await wake.wait(until: .now - .seconds(1))
    await wake.wait(until: .now + .milliseconds(1))
    await withTaskGroup { group in
      group.addTask { await wake.wait(until: .now + .seconds(3_600)) }
      wake.signal()
      await group.waitForAll()
    }
    await withTaskGroup { group in
      group.addTask { await wake.wait() }
      group.cancelAll()
      await group.waitForAll()
    }
  }

  @Test("no signal is lost between two tasks that answer each other")
  func pingPong() async {
    let ping = Wake()
    let pong = Wake()
    await withTaskGroup { group in
      group.addTask {
        for _ in 0..<5_000 {
          await ping.wait()
          pong.signal()
        }
      }
      group.addTask {
        for _ in 0..<5_000 {
          ping.signal()
          await pong.wait()
        }
      }
      await group.waitForAll()
    }
  }

  @Test("deadlines that pass while a signal comes lose neither")
  func races() async {
    let wake = Wake()
    for _ in 0..<500 {
      await withTaskGroup { group in
        group.addTask { wake.signal() }
        group.addTask { await wake.wait(until: .now + .microseconds(50)) }
        await group.waitForAll()
      }
    }
  }
}
