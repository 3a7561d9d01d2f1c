// What users of E2B's own package do, against the daemon that the environment names. `client.mjs SCENARIO` runs one;
// without an argument the names are printed.
import assert from 'node:assert/strict'
import { CommandExitError, FileType, NotFoundError, Sandbox } from 'e2b'

const made = []
async function create(...args) {
  const sandbox = await Sandbox.create(...args)
  made.push(sandbox.sandboxId)
  return sandbox
}

async function ids(query) {
  const found = []
  const pages = Sandbox.list(query === undefined ? undefined : { query })
  while (pages.hasNext) found.push(...(await pages.nextItems()))
  return found.map((info) => info.sandboxId)
}

const scenarios = {
  async commands() {
    const sandbox = await create()
    assert.equal(await sandbox.isRunning(), true)
    const result = await sandbox.commands.run('echo to out; echo to err >&2; echo $((6 * 7))')
    assert.deepEqual([result.exitCode, result.stdout, result.stderr], [0, 'to out\n42\n', 'to err\n'])
    await assert.rejects(sandbox.commands.run('echo no; exit 3'), (error) => {
      assert.ok(error instanceof CommandExitError)
      assert.deepEqual([error.exitCode, error.stdout], [3, 'no\n'])
      return true
    })
    const seen = []
    await sandbox.commands.run('for i in 1 2 3; do echo $i; done', { onStdout: (data) => seen.push(data) })
    assert.equal(seen.join(''), '1\n2\n3\n')
    const environment = await sandbox.commands.run('echo $A; pwd; id -un', { envs: { A: 'b c' }, cwd: '/tmp', user: 'root' })
    assert.equal(environment.stdout, 'b c\n/tmp\nroot\n')
    const own = await sandbox.commands.run('pwd; id -un')
    assert.equal(own.stdout, '/home/user\nuser\n')
    await assert.rejects(sandbox.commands.run('sleep 60', { timeoutMs: 1000 }), /timeout|deadline/i)
  },

  async background() {
    const sandbox = await create()
    const command = await sandbox.commands.run('while read line; do echo got $line; done', { background: true, stdin: true })
    const listed = await sandbox.commands.list()
    assert.ok(listed.some((process) => process.pid === command.pid))
    let heard = () => {}
    const answered = new Promise((resolve) => (heard = resolve))
    const connected = await sandbox.commands.connect(command.pid, { onStdout: heard })
    await sandbox.commands.sendStdin(command.pid, 'this\n')
    assert.equal(await answered, 'got this\n')
    assert.equal(await sandbox.commands.kill(command.pid), true)
    await assert.rejects(connected.wait(), CommandExitError)
    assert.equal(await sandbox.commands.kill(999999), false)
  },

  async terminal() {
    const sandbox = await create()
    let text = ''
    let found = () => {}
    const marked = new Promise((resolve) => (found = resolve))
    const terminal = await sandbox.pty.create({
      cols: 91,
      rows: 19,
      onData: (data) => {
        text += new TextDecoder().decode(data)
        if (text.includes('20 92')) found()
      },
    })
    await sandbox.pty.resize(terminal.pid, { cols: 92, rows: 20 })
    await sandbox.pty.sendInput(terminal.pid, new TextEncoder().encode('stty size; exit\n'))
    await marked
    await terminal.wait()
  },

  async files() {
    const sandbox = await create()
    const written = await sandbox.files.write('notes/hello.txt', 'hello, wörld')
    assert.equal(written.path, '/home/user/notes/hello.txt')
    assert.equal(await sandbox.files.read('notes/hello.txt'), 'hello, wörld')
    const bytes = new Uint8Array(1 << 20).map((_, index) => index * 7)
    await sandbox.files.write('/tmp/bytes', bytes.buffer)
    assert.deepEqual(await sandbox.files.read('/tmp/bytes', { format: 'bytes' }), bytes)
    await sandbox.files.write([
      { path: 'notes/one', data: '1' },
      { path: 'notes/two', data: '22' },
    ])
    const entries = await sandbox.files.list('notes')
    assert.deepEqual(entries.map((entry) => entry.name).sort(), ['hello.txt', 'one', 'two'])
    assert.ok(entries.every((entry) => entry.type === FileType.FILE))
    assert.equal(await sandbox.files.makeDir('notes/deeper'), true)
    assert.equal(await sandbox.files.makeDir('notes/deeper'), false)
    await sandbox.files.rename('notes/two', 'notes/deeper/three')
    const info = await sandbox.files.getInfo('notes/deeper/three')
    assert.deepEqual([info.name, Number(info.size)], ['three', 2])
    assert.equal(await sandbox.files.exists('notes/two'), false)
    await sandbox.files.remove('notes')
    assert.equal(await sandbox.files.exists('notes'), false)
    await assert.rejects(sandbox.files.read('notes/hello.txt'), NotFoundError)
  },

  async pauseAndConnect() {
    const sandbox = await create({ metadata: { 'a key': 'a=b&c' }, timeoutMs: 120_000 })
    await sandbox.files.write('/dev/shm/kept', 'in memory')
    const counting = await sandbox.commands.run('i=0; while sleep 0.1; do i=$((i+1)); echo $i > /dev/shm/new; mv /dev/shm/new /dev/shm/count; done', {
      background: true,
    })
    await sandbox.commands.run('until [ -e /dev/shm/count ]; do sleep 0.05; done')
    const boot = await sandbox.files.read('/proc/sys/kernel/random/boot_id')
    await sandbox.pause()
    assert.equal(await sandbox.isRunning(), false)
    assert.ok((await ids({ state: ['paused'] })).includes(sandbox.sandboxId))
    const again = await Sandbox.connect(sandbox.sandboxId)
    assert.equal(again.sandboxId, sandbox.sandboxId)
    assert.equal(await again.files.read('/dev/shm/kept'), 'in memory')
    assert.equal(await again.files.read('/proc/sys/kernel/random/boot_id'), boot)
    assert.ok((await again.commands.list()).some((process) => process.pid === counting.pid))
    const before = Number(await again.files.read('/dev/shm/count'))
    await again.commands.run(`until [ $(cat /dev/shm/count) -gt ${before} ]; do sleep 0.05; done`)
    assert.ok((await ids({ metadata: { 'a key': 'a=b&c' } })).includes(sandbox.sandboxId))
    assert.ok(!(await ids({ metadata: { 'a key': 'other' } })).includes(sandbox.sandboxId))
  },

  async fork() {
    const sandbox = await create()
    await sandbox.files.write('/dev/shm/common', 'common')
    const children = await sandbox.fork({ count: 3 })
    for (const child of children) {
      assert.ok(child instanceof Sandbox, String(child))
      made.push(child.sandboxId)
    }
    await Promise.all(children.map((child, index) => child.files.write('/dev/shm/own', `own ${index}`)))
    for (const [index, child] of children.entries()) {
      assert.equal(await child.files.read('/dev/shm/common'), 'common')
      assert.equal(await child.files.read('/dev/shm/own'), `own ${index}`)
    }
    assert.equal(await sandbox.files.exists('/dev/shm/own'), false)
    await sandbox.kill()
    assert.equal((await children[0].commands.run('echo on')).stdout, 'on\n')
  },

  async snapshots() {
    const sandbox = await create({ envs: { COLOUR: 'red' } })
    await sandbox.files.write('/dev/shm/kept', 'then')
    const named = await sandbox.createSnapshot({ name: 'e2b-work' })
    assert.deepEqual([named.snapshotId, named.names], ['e2b-work:default', ['e2b-work:default']])
    assert.equal(await sandbox.isRunning(), true)
    await sandbox.files.write('/dev/shm/kept', 'now')
    const unnamed = await sandbox.createSnapshot()
    assert.deepEqual(unnamed.names, [])
    const listed = []
    const pages = sandbox.listSnapshots({ limit: 1 })
    while (pages.hasNext) listed.push(...(await pages.nextItems()))
    assert.deepEqual(listed.map((snapshot) => snapshot.snapshotId), [unnamed.snapshotId, named.snapshotId])
    const byName = await Sandbox.listSnapshots({ name: 'e2b-work' }).nextItems()
    assert.deepEqual(byName, [named])
    await sandbox.kill()
    for (const [snapshot, content] of [[named, 'then'], [unnamed, 'now']]) {
      const copy = await create(snapshot.snapshotId)
      assert.equal(await copy.files.read('/dev/shm/kept'), content)
      assert.equal((await copy.commands.run('echo $COLOUR')).stdout, 'red\n')
      await copy.kill()
      assert.equal(await Sandbox.deleteSnapshot(snapshot.snapshotId), true)
      assert.equal(await Sandbox.deleteSnapshot(snapshot.snapshotId), false)
    }
    await assert.rejects(create('e2b-work:default'))
  },

  async killAndList() {
    const sandboxes = await Promise.all([create(), create(), create()])
    const expected = sandboxes.map((sandbox) => sandbox.sandboxId)
    const listed = await ids()
    assert.ok(expected.every((id) => listed.includes(id)))
    assert.equal(await sandboxes[0].kill(), true)
    assert.equal(await sandboxes[0].isRunning(), false)
    assert.equal(await Sandbox.kill(expected[0]), false)
    assert.ok(!(await ids()).includes(expected[0]))
    await assert.rejects(Sandbox.connect(expected[0]), NotFoundError)
    const info = await sandboxes[1].getInfo()
    assert.deepEqual([info.sandboxId, info.state], [expected[1], 'running'])
    await sandboxes[1].setTimeout(500_000)
    assert.ok((await sandboxes[1].getInfo()).endAt - Date.now() > 400_000)
  },
}

const chosen = process.argv[2]
if (chosen === undefined) {
  console.log(Object.keys(scenarios).join('\n'))
} else {
  try {
    await scenarios[chosen]()
  } finally {
    await Promise.allSettled(made.map((id) => Sandbox.kill(id)))
  }
}
