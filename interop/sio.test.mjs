// socket.io-client as it comes from npm, from 2.3.0 to 4.8, in Node, against
// sioserver. Run it with interop/run. Each test's name is a promise, made to
// each client over each transport.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once as event } from "node:events";
import { after, before, describe, test as nodeTest } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";

import { startSioserver, test as alone, until, WAIT } from "./harness.mjs";
import { clients, ways } from "./sioclients.mjs";
import { ask, beside, bytes, connected, fresh, inOrder, Inbox, once, refusal, same, start as begin, upgraded } from "./sockets.mjs";

let server;
before(async () => {
	server = await startSioserver();
});
after(async () => {
	await server?.stop();
	await server?.stop("SIGKILL");
});

/** A client's socket that begins to connect. from is another server's URL. */
const start = (t, client, way, { from = server.url, ...options } = {}) => begin(t, from, client, way, options);

/** A socket that is connected. */
const open = (t, client, way, options) => connected(start(t, client, way, options));

/** Why a user's connections ended, once there are n. */
const ended = (user, n = 1) =>
	until(`${n} connections of ${user} have ended`, async () => {
		const reasons = await server.ask("GET", "/ended", { user });
		return reasons.length >= n && reasons;
	});

const push = async (query, data) => (await server.push(query, data)).receipt;

describe("socket.io-client", { concurrency: 4 }, () => {
	for (const client of clients) {
		for (const way of ways) {
			const transport = way.length > 1 ? "both transports" : way[0];
			describe(`${client.name} over ${transport}`, { concurrency: 2 }, () => {
				const test = (name, run) => nodeTest(name, { timeout: 60_000 }, run);
				promises(test, client, way);
				if (way.length > 1) upgrades(test, client, way);
			});
		}
	}
});

function promises(test, client, way) {
	const { old } = client;

	test("hello comes each second, to who is nobody in particular, too", async (t) => {
		const socket = start(t, client, way);
		const [hello, welcome] = [new Inbox(socket, "hello"), new Inbox(socket, "welcome")];
		assert.equal((await welcome.next())[0].user, "");
		const points = [await hello.next(), await hello.next(), await hello.next()];
		for (const [i, [point, ...more]] of points.entries()) {
			assert.deepEqual(Object.keys(point), ["x", "y"]);
			assert.deepEqual(more, []);
			if (i > 0) assert.ok(point.x !== points[i - 1][0].x && point.y !== points[i - 1][0].y);
		}
	});

	test("it is who it says, by its claims or by the URL's query", async (t) => {
		for (const options of [{ claims: { userId: fresh("user") } }, { claims: { user: fresh("user") } }, { query: { userId: fresh("user") } }]) {
			const socket = start(t, client, way, options);
			const [welcome] = await once(socket, "welcome");
			const user = { ...options.claims, ...options.query };
			assert.equal(welcome.user, user.user ?? user.userId);
			assert.equal((await push({ user: welcome.user, event: "x" }, 1)).sent, 1);
		}
	});

	test("a wrong password is refused with the server's text, and a right one is not", async (t) => {
		const user = fresh("user");
		const socket = start(t, client, way, { claims: { user, token: "wrong" } });
		assert.equal(await refusal(socket, old), "wrong password");
		assert.ok(!socket.connected);
		assert.deepEqual((await push({ user, event: "x" }, 1)).offline, [user]);
		if (old) return; // it cannot ask again on the same connection
		socket.auth = { user, token: "right" };
		socket.connect();
		await connected(socket);
		assert.equal((await push({ user, event: "x" }, 1)).sent, 1);
	});

	test("what it sends comes back as an event and as an ack, whatever the arguments", async (t) => {
		const socket = await open(t, client, way);
		const echo = new Inbox(socket, "echo");
		for (const args of [["one"], [], [null], [{ a: [1, { b: null }], c: -1.5 }, "two", 3, true, []], [[]], [0, ""]]) {
			assert.deepEqual(await ask(socket, "echo", ...args), args);
			assert.deepEqual(await echo.next(), args);
		}
	});

	test("numbers, dates and nothing arrive as JSON has them", async (t) => {
		const socket = await open(t, client, way);
		const numbers = [-1, -32, -33, -129, -32769, -(2 ** 31) - 1, 1 - 2 ** 53, 255, 256, 65536, 2 ** 31, 2 ** 32, 2 ** 53 - 1, 0.1, 1e-7];
		if (!client.parser) numbers.push(1e21, 1e300); // it writes those wrong by itself
		assert.deepEqual(await ask(socket, "echo", ...numbers), numbers);
		const day = new Date(1e12 + 5);
		assert.deepEqual(await ask(socket, "echo", day, undefined, { a: [day, undefined], b: undefined }), [day.toJSON(), null, { a: [day.toJSON(), null] }]);
	});

	test("what a handler refuses is an ack that says why", async (t) => {
		const socket = await open(t, client, way);
		assert.deepEqual(await ask(socket, "refuse", "not today"), [{ error: "not today" }]);
		assert.deepEqual(await ask(socket, "nonsense", 1), [{ error: "unknown event" }]);
		assert.deepEqual(await ask(socket, "echo", 1), [1]);
	});

	test("a push is acked by the page's callback, and its reply is in the receipt", async (t) => {
		const user = fresh("user");
		const socket = await open(t, client, way, { claims: { user } });
		const asked = new Inbox(socket, "ask");
		for (const [ack, reply, want] of [
			["biz", [{ got: [1] }], { got: [1] }],
			["auto", ["text"], "text"],
			["biz", [], undefined],
			["biz", [1, "two", null], [1, "two", null]],
		]) {
			const pushed = push({ user, event: "ask", ack }, { n: 1 });
			const [data, answer] = await asked.next();
			assert.deepEqual(data, { n: 1 });
			answer(...reply);
			const { acked, deliveries } = await pushed;
			assert.equal(acked, 1);
			assert.deepEqual(deliveries[0].reply, want);
		}
	});

	test("a push that the page does not call back for times out, and the connection lives", async (t) => {
		const user = fresh("user");
		const socket = await open(t, client, way, { claims: { user } });
		const { failed, deliveries } = await push({ user, event: "ask", ack: "biz", wait: "300ms" }, 1);
		assert.equal(failed, 1);
		assert.equal(deliveries[0].status, "timeout");
		assert.deepEqual(await ask(socket, "echo", 1), [1]);
	});

	test("bytes come back as bytes, among other arguments and large ones too", async (t) => {
		const socket = await open(t, client, way);
		const echo = new Inbox(socket, "echo");
		for (const args of [[bytes(1)], [bytes(256)], ["a", bytes(3), { b: 1 }, bytes(1000)], [bytes(200_000)]]) {
			same(await ask(socket, "echo", ...args), args, "the ack");
			same(await echo.next(), args, "the event");
		}
	});

	test("bytes within an object arrive as bytes", async (t) => {
		const socket = await open(t, client, way);
		const [a, b, c] = [bytes(10), bytes(256), Buffer.from("text")];
		same(await ask(socket, "blob", { name: "x", data: a, parts: [{ data: b }, { data: c }] }), ["x", a, b, c]);
	});

	test("pushed bytes are acked with bytes", async (t) => {
		const user = fresh("user");
		const socket = await open(t, client, way, { claims: { user } });
		const asked = new Inbox(socket, "ask");
		for (const n of [1, 50_000]) {
			const want = bytes(n);
			const pushed = push({ user, event: "ask", ack: "biz", as: "args" }, ["base64:" + want.toString("base64"), "more"]);
			const [got, more, answer] = await asked.next();
			same([got, more], [want, "more"]);
			answer(got);
			const { acked, deliveries } = await pushed;
			assert.equal(acked, 1);
			assert.equal(deliveries[0].reply, want.toString("base64"));
		}
	});

	test("a push to a room reaches who is in it", async (t) => {
		const room = fresh("room");
		const [one, two, three] = await Promise.all([1, 2, 3].map(() => open(t, client, way)));
		const [news1, news2, news3] = [one, two, three].map((socket) => new Inbox(socket, "news"));
		await Promise.all([one, two].map((socket) => ask(socket, "join", room)));
		assert.deepEqual(await ask(three, "room", { room, event: "news", data: { n: 1 } }), [2]);
		assert.deepEqual([await news1.next(), await news2.next()], [[{ n: 1 }], [{ n: 1 }]]);
		await ask(three, "join", room);
		assert.deepEqual(await ask(one, "leave", room), [[]]);
		assert.deepEqual(await ask(one, "room", { room, event: "news", data: { n: 2 } }), [2]);
		assert.deepEqual([await news2.next(), await news3.next()], [[{ n: 2 }], [{ n: 2 }]]);
		await ask(one, "echo"); // behind which nothing of it comes any more
		assert.equal(news1.all.length, 1);
	});

	test("a push to a user reaches both tabs, and one of them may ask for it", async (t) => {
		const user = fresh("user");
		const [one, two, other] = await Promise.all([user, user, fresh("user")].map((user) => open(t, client, way, { claims: { user } })));
		const orders = [one, two, other].map((socket, i) => {
			const inbox = new Inbox(socket, "order");
			socket.on("order", (_, answer) => answer(`tab ${i}`));
			return inbox;
		});
		for (const who of [other, one]) {
			const [receipt] = await ask(who, "push-user", { user, event: "order", data: { n: 7 } });
			assert.equal(receipt.acked, 2, JSON.stringify(receipt));
			assert.deepEqual(receipt.deliveries.map((d) => d.reply).sort(), ["tab 0", "tab 1"]);
		}
		assert.deepEqual(orders.map((inbox) => inbox.all.map(([data]) => data)), [[{ n: 7 }, { n: 7 }], [{ n: 7 }, { n: 7 }], []]);
	});

	test("namespaces share its connection and nothing else", async (t) => {
		const user = fresh("user");
		const root = await open(t, client, way, { claims: { user } });
		const [custom, chat] = ["/custom", "/chat"].map((name) => beside(root, name, client, { user }));
		const welcomes = await Promise.all([custom, chat].map((socket) => once(socket, "welcome")));
		assert.deepEqual(welcomes.map(([w]) => [w.user, w.namespace]), [[user, "/custom"], [user, "/chat"]]);

		const inboxes = [root, custom, chat].map((socket) => new Inbox(socket, "note"));
		const answer = (n) => (_, ack) => ack?.(n);
		[root, custom, chat].forEach((socket, i) => socket.on("note", answer(i)));
		for (const [i, namespace] of ["/", "/custom", "/chat"].entries()) {
			const { acked, deliveries } = await push({ user, namespace, event: "note", ack: "biz" }, namespace);
			assert.deepEqual([acked, deliveries.map((d) => d.reply)], [1, [i]], namespace);
		}
		assert.deepEqual(inboxes.map((inbox) => inbox.all.map(([name]) => name)), [["/"], ["/custom"], ["/chat"]]);
		for (const socket of [chat, custom, root]) same(await ask(socket, "echo", "a", bytes(5)), ["a", bytes(5)]);

		const room = fresh("room");
		await Promise.all([root, chat].map((socket) => ask(socket, "join", room)));
		assert.deepEqual(await ask(chat, "room", { room, event: "note", data: 1 }), [1]);

		chat.disconnect();
		await ended(user);
		assert.equal((await push({ user, namespace: "/chat", event: "note" }, 1)).targets, 0);
		assert.deepEqual(await ask(custom, "echo", 1), [1]);
		chat.connect();
		await connected(chat, "/chat is connected again");
		assert.deepEqual(await ask(chat, "echo", 2), [2]);
		assert.ok(root.connected && custom.connected);
	});

	test("an unknown namespace is refused as this client expects, another with the server's text, and / stays", async (t) => {
		const root = await open(t, client, way);
		for (const [name, why] of [["/unknown", "Invalid namespace"], ["/private", "not you"]]) {
			const socket = beside(root, name, client);
			assert.equal(await refusal(socket, old), why);
			assert.ok(!socket.connected);
			assert.deepEqual(await ask(root, "echo", name), [name]);
		}
	});

	test("a namespace can be all it connects to", async (t) => {
		const user = fresh("user");
		const chat = await open(t, client, way, { namespace: "/chat", claims: { user } });
		const note = new Inbox(chat, "note");
		assert.deepEqual(await ask(chat, "echo", 1), [1]);
		assert.equal((await push({ user, namespace: "/chat", event: "note" }, 5)).sent, 1);
		assert.deepEqual(await note.next(), [5]);
	});

	test("what it emits before it is connected arrives, and in order", async (t) => {
		const socket = start(t, client, way);
		for (let i = 0; i < 50; i++) socket.emit("n", i);
		assert.deepEqual(await ask(socket, "count", null), [{ count: 50, ordered: true }]);
	});

	test("3 000 events arrive in order, from the page and from the server", async (t) => {
		const socket = await open(t, client, way);
		for (let i = 0; i < 3000; i++) socket.emit("n", i);
		assert.deepEqual(await ask(socket, "count", null), [{ count: 3000, ordered: true }]);
		const inbox = new Inbox(socket, "n");
		assert.deepEqual(await ask(socket, "flood", 3000), [3000]);
		inOrder(inbox, 3000);
	});

	test("text of every kind arrives as it was, and names events", async (t) => {
		const socket = await open(t, client, way);
		const texts = ["grüße 你好 🙂👩‍👩‍👧", "\u0000\u0001\u001e\u007f\u2028\u2029\ufeff", `"\\/<b>&'`, "42[1]", "😀".repeat(1000), "\ud7ff\ue000\uffff\u{10000}\u{10ffff}"];
		for (const text of texts) {
			assert.deepEqual(await ask(socket, "echo", text, { [text]: text }), [text, { [text]: text }]);
		}
		const name = "echo grüße 🙂 \"quoted\"";
		const inbox = new Inbox(socket, name);
		assert.deepEqual(await ask(socket, name, ...texts), texts);
		assert.deepEqual(await inbox.next(), texts);
	});

	test("200 KB go both ways in one event", async (t) => {
		const socket = await open(t, client, way);
		const echo = new Inbox(socket, "echo");
		for (const text of ["x".repeat(200_000), "€".repeat(66_000)]) {
			assert.ok((await ask(socket, "echo", text))[0] === text);
			assert.ok((await echo.next())[0] === text);
		}
	});

	test("an event that is too large ends the connection, and it comes back", async (t) => {
		const socket = await open(t, client, way);
		const [disconnect, connect] = [new Inbox(socket, "disconnect"), new Inbox(socket, "connect")];
		socket.emit("echo", "x".repeat(1_000_001));
		assert.match((await disconnect.next())[0], /^transport (close|error)$/);
		await connect.next();
		assert.deepEqual(await ask(socket, "echo", 1), [1]);
	});

	test("the server may be at another path", async (t) => {
		const socket = await open(t, client, way, { path: "/else/where" });
		if (way.length > 1) await upgraded(socket);
		assert.deepEqual(await ask(socket, "echo", 1), [1]);
	});

	test("who is kicked is told so and does not come back", async (t) => {
		const [one, two] = [fresh("user"), fresh("user")];
		const sockets = await Promise.all([one, two].map((user) => open(t, client, way, { claims: { user } })));
		const gone = sockets.map((socket) => once(socket, "disconnect"));
		const back = sockets.map((socket) => new Inbox(socket, "connect"));
		sockets[0].emit("kick-me", "bye");
		assert.equal(await server.ask("POST", "/kick", { user: two, text: "bye" }), 1);
		for (const [why] of await Promise.all(gone)) assert.equal(why, "io server disconnect");
		for (const user of [one, two]) assert.deepEqual(await ended(user), ["kicked"]);
		await sleep(1000);
		assert.deepEqual(back.map((inbox) => inbox.all.length), [0, 0]);
		for (const user of [one, two]) assert.equal((await push({ user, event: "x" }, 1)).targets, 0);
	});

	test("it comes back by itself when its connection breaks, and is logged in again", async (t) => {
		const user = fresh("user");
		const socket = start(t, client, way, { claims: { user } });
		const [welcome, disconnect] = [new Inbox(socket, "welcome"), new Inbox(socket, "disconnect")];
		await welcome.next();
		if (way.length > 1) await upgraded(socket);
		for (let n = 1; n <= 2; n++) {
			await server.ask("POST", "/drop", { tab: socket.tab });
			assert.match((await disconnect.next())[0], /^transport (close|error)$/);
			assert.equal((await welcome.next())[0].user, user);
			// Over polling it may say goodbye before the server misses it.
			for (const why of await ended(user, n)) assert.match(why, way[0] === "polling" ? /^(lost|client)$/ : /^lost$/);
			assert.equal((await push({ user, event: "x" }, 1)).sent, 1);
			if (way.length > 1) await upgraded(socket);
		}
	});

	test("it says goodbye, and may come again", async (t) => {
		const user = fresh("user");
		const socket = await open(t, client, way, { claims: { user } });
		const why = once(socket, "disconnect");
		socket.disconnect();
		assert.equal((await why)[0], "io client disconnect");
		assert.deepEqual(await ended(user), ["client"]);
		assert.equal((await push({ user, event: "x" }, 1)).targets, 0);
		await until("its connection is closed", () => socket.io.engine.readyState === "closed"); // or an old client comes twice
		socket.connect();
		await connected(socket);
		assert.equal((await push({ user, event: "x" }, 1)).sent, 1);
	});

	if (client.name.startsWith("4.")) {
		test("its promises of an ack are kept", async (t) => {
			const socket = await open(t, client, way);
			assert.equal(await socket.emitWithAck("echo", "x"), "x");
			assert.equal(await socket.timeout(WAIT).emitWithAck("echo", "y"), "y");
		});
	}
}

function upgrades(test, client, way) {
	test("it begins on polling and goes on over a WebSocket", async (t) => {
		const socket = await open(t, client, way);
		const disconnect = new Inbox(socket, "disconnect");
		await upgraded(socket);
		assert.deepEqual(await ask(socket, "echo", 1), [1]);
		const seen = await server.ask("GET", "/requests", { tab: socket.tab });
		assert.equal(seen["GET websocket"], 1);
		assert.ok(seen["GET polling"] >= 1);
		assert.deepEqual(disconnect.all, []);
	});

	test("nothing is lost, doubled or out of order through the upgrade", async (t) => {
		const socket = start(t, client, way);
		const inbox = new Inbox(socket, "n");
		socket.emit("trickle", null);
		let sent = 0;
		let before = -1; // events that had come when it became a WebSocket
		for (const end = Date.now() + 2 * WAIT; sent < 400 || before < 0 || inbox.all.length < before + 100; ) {
			socket.emit("n", sent++);
			if (before < 0 && socket.io.engine.transport.name === "websocket") before = inbox.all.length;
			assert.ok(Date.now() < end, `after ${sent} sent and ${inbox.all.length} come it is on ${socket.io.engine.transport.name}`);
			if (sent % 2 === 0) await sleep(1);
		}
		const [trickled] = await ask(socket, "enough", null);
		assert.deepEqual(await ask(socket, "count", null), [{ count: sent, ordered: true }]);
		await inbox.length(trickled);
		inOrder(inbox, trickled);
	});
}

/** Every client over every transport, each as a user of its own. */
const everybody = () => clients.flatMap((client) => ways.map((way) => ({ client, way, user: fresh("user"), who: `${client.name} over ${way.join(" and ")}` })));

alone("heartbeats keep whoever is there, and end who is not", async (t) => {
	const server = await startSioserver(undefined, "-heartbeat", "2s", "-quiet");
	t.after(() => server.stop("SIGKILL"));
	const acked = async (user) => (await server.push({ user, event: "there?", ack: "biz", wait: "1s" }, 1)).receipt.acked === 1;

	// In a process of their own, which can be stopped as a lid stops a laptop.
	const all = everybody();
	const other = spawn(process.execPath, [fileURLToPath(new URL("sioclients.mjs", import.meta.url)), server.url, ...all.map(({ user }) => user)], { stdio: ["ignore", "inherit", "inherit"] });
	const exit = event(other, "exit");
	t.after(async () => {
		other.kill("SIGKILL");
		await exit;
	});
	for (const { user, who } of all) await until(`${who} is there`, () => acked(user));
	await sleep(7000); // without a word
	for (const { user, who } of all) {
		await until(`${who} answers`, () => acked(user));
		assert.deepEqual(await server.ask("GET", "/ended", { user }), [], who);
	}

	other.kill("SIGSTOP");
	for (const { user, who } of all) {
		const why = await until(`${who} is missed`, async () => (await server.ask("GET", "/ended", { user }))[0]);
		assert.equal(why, "heartbeat", who);
	}
	other.kill("SIGCONT");
	for (const { user, who } of all) await until(`${who} is back`, () => acked(user));
});

for (const [signal, how] of [["SIGKILL", "a crash"], ["SIGINT", "a shutdown"]]) {
	alone(`every client comes back after ${how} of the server`, async (t) => {
		let server = await startSioserver();
		t.after(() => server.stop("SIGKILL"));
		const all = everybody();
		for (const one of all) {
			one.socket = await open(t, one.client, one.way, { from: server.url, claims: { user: one.user } });
			one.gone = new Inbox(one.socket, "disconnect");
		}
		await server.stop(signal);
		for (const { gone } of all) assert.match((await gone.next())[0], /^transport (close|error)$/);
		server = await startSioserver(server.address);
		for (const { socket, user, who } of all) {
			await until(`${who} is back`, () => socket.connected);
			assert.equal((await server.push({ user, event: "x" }, 1)).receipt.sent, 1);
		}
	});
}
