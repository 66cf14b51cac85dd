// Tests of push.js: node --test client/js/*.test.mjs
//
// WebSocket, window and document are fakes, timers and the date are node:test's
// mock timers, chance is a number we set. Each test's name is a promise.

import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { afterEach, beforeEach, mock, test } from "node:test";

// Through a data: URL, so that no package.json has to say "this .js is a module".
const source = await readFile(new URL("./push.js", import.meta.url), "utf8");
const { connect, NOACK } = await import("data:text/javascript," + encodeURIComponent(source));

const SECOND = 1000;
const COMES_BACK = [1000, 1001, 1005, 1006, 1011, 1012, 1013, 1014, 1015, 3000, 4000, 4408];
const STAYS_AWAY = [1002, 1003, 1007, 1008, 1009, 4401, 4409, 4410];

class FakeSocket {
	static all = [];

	constructor(url, protocols) {
		Object.assign(this, { url, protocols, readyState: 0, sent: [], closedWith: undefined });
		FakeSocket.all.push(this);
	}
	send(text) {
		assert.equal(this.readyState, 1, "sent on a socket that is not open");
		this.sent.push(JSON.parse(text));
	}
	close(code) {
		this.closedWith ??= code ?? 1005;
		this.readyState = 3;
	}

	// The server's side.
	async accept() {
		this.readyState = 1;
		this.onopen?.({});
		await settled();
	}
	async says(frame) {
		this.onmessage?.({ data: typeof frame === "string" ? frame : JSON.stringify(frame) });
		await settled();
	}
	async ends(code, reason = "") {
		this.readyState = 3;
		this.onclose?.({ code, reason });
		await settled();
	}
	wantSent(...frames) {
		assert.deepEqual(this.sent.splice(0), frames);
	}
}

/** Lets every promise that can settle do so. */
async function settled() {
	for (let i = 0; i < 30; i++) await null;
}

/** Lets time pass, in steps: a tick does not run on time what is set within it. */
async function pass(ms) {
	for (; ms > 0; ms -= 5 * SECOND) {
		mock.timers.tick(Math.min(ms, 5 * SECOND));
		await settled();
	}
}

/** The newest socket. */
const last = () => FakeSocket.all.at(-1);

function wantSockets(n) {
	assert.equal(FakeSocket.all.length, n, "sockets opened so far");
}

let chance; // what Math.random says
let reported; // what reached reportError
let warned; // what reached console.warn
let timers; // running
let clients;

beforeEach(() => {
	mock.timers.enable({ apis: ["setTimeout", "Date"] });
	timers = new Set();
	const { setTimeout, clearTimeout } = globalThis;
	mock.method(globalThis, "setTimeout", (f, ms) => {
		const t = setTimeout(() => {
			timers.delete(t);
			f();
		}, ms);
		timers.add(t);
		return t;
	});
	mock.method(globalThis, "clearTimeout", (t) => {
		timers.delete(t);
		clearTimeout(t);
	});

	chance = 0.5;
	mock.method(Math, "random", () => chance);
	reported = [];
	globalThis.reportError = (e) => reported.push(e);
	warned = [];
	mock.method(console, "warn", (e) => warned.push(e));

	FakeSocket.all = [];
	globalThis.WebSocket = FakeSocket;
	globalThis.location = { href: "https://shop.example/app/page.html?x=1#top" };
	for (const target of [globalThis, (globalThis.document = { hidden: false })]) {
		target.listeners = new Set();
		target.addEventListener = (type, f) => target.listeners.add(f);
		target.removeEventListener = (type, f) => target.listeners.delete(f);
	}
	clients = [];
});

afterEach(async () => {
	for (const c of clients) c.close();
	await settled();
	wantNothingLeft();
	for (const name of ["WebSocket", "location", "document", "reportError", "listeners", "addEventListener", "removeEventListener"]) delete globalThis[name];
	mock.restoreAll();
	mock.timers.reset();
});

function wantNothingLeft() {
	assert.equal(timers.size, 0, "timers still running");
	assert.equal(globalThis.listeners?.size ?? 0, 0, "listeners left on window");
	assert.equal(globalThis.document?.listeners?.size ?? 0, 0, "listeners left on document");
}

async function fire(target, type) {
	for (const f of [...target.listeners]) f({ type });
	await settled();
}
const backOnline = () => fire(globalThis, "online");
async function seen(hidden) {
	document.hidden = hidden;
	await fire(document, "visibilitychange");
}

/** A client that has begun its first attempt; states collects what onstate was told. */
async function begin(url = "/ws", options) {
	const push = connect(url, options);
	clients.push(push);
	push.states = [];
	push.onstate = (state, why) => push.states.push([state, why.code]);
	await settled();
	return push;
}

/** A client with an open connection. */
async function opened(options) {
	const push = await begin("/ws", options);
	await last().accept();
	return push;
}

/** The error a promise has rejected with by now. */
async function refusal(promise) {
	let error;
	promise.catch((e) => (error = e));
	await settled();
	assert.ok(error, "promise was to reject");
	return error;
}

/** What a promise has resolved to by now. */
async function outcome(promise) {
	let value = "nothing yet";
	promise.then((v) => (value = v));
	await settled();
	return value;
}

// Connecting

test("a relative URL is the page's, as wss or ws", async () => {
	await begin("/ws?user=alice");
	assert.equal(last().url, "wss://shop.example/ws?user=alice");
	await begin("ws");
	assert.equal(last().url, "wss://shop.example/app/ws");
	location.href = "http://localhost:8080/";
	await begin("/ws");
	assert.equal(last().url, "ws://localhost:8080/ws");
	await begin("wss://push.example/x");
	assert.equal(last().url, "wss://push.example/x");
	await begin(new URL("https://push.example/y"));
	assert.equal(last().url, "wss://push.example/y");
});

test("the subprotocol is push.json unless the page says otherwise", async () => {
	await begin();
	assert.equal(last().protocols, "push.json");
	await begin("/ws", { protocols: [] });
	assert.deepEqual(last().protocols, []);
});

test("a url function is asked before every connection", async () => {
	let n = 0;
	await begin(async () => "/ws?ticket=" + ++n);
	assert.equal(last().url, "wss://shop.example/ws?ticket=1");
	await last().ends(1006);
	await pass(2 * SECOND);
	assert.equal(last().url, "wss://shop.example/ws?ticket=2");
});

test("without a login the connection is open when the socket is", async () => {
	const push = await begin();
	assert.equal(push.state, "connecting");
	await last().accept();
	assert.equal(push.state, "open");
	assert.equal(push.user, "");
	last().wantSent();
	assert.deepEqual(push.states, [["open", 0]]);
});

test("connect does nothing while connecting or open", async () => {
	const push = await begin();
	push.connect();
	await last().accept();
	push.connect();
	await settled();
	wantSockets(1);
});

test("an attempt that hangs is given up after 20 s", async () => {
	const push = await begin();
	await pass(20 * SECOND - 1);
	assert.equal(push.state, "connecting");
	await pass(1);
	assert.equal(push.state, "waiting");
	assert.deepEqual([push.why.code, push.why.reason], [1006, "opening timed out"]);
	assert.equal(last().closedWith, 1000);
});

test("a login function that hangs is given up after 20 s and its late answer ignored", async () => {
	let late;
	const push = await begin("/ws", { login: () => new Promise((resolve) => (late = resolve)) });
	await pass(20 * SECOND);
	assert.equal(push.state, "waiting");
	late({ user: "alice" });
	await settled();
	wantSockets(0);
});

test("what fails after close is nobody's business", async () => {
	let reject;
	const push = await begin("/ws", { login: () => new Promise((_, r) => (reject = r)) });
	push.close();
	reject(new Error("late"));
	await settled();
	assert.deepEqual([push.state, push.why.code, warned.length], ["closed", 1000, 0]);
	wantNothingLeft();
});

test("a socket that cannot be made is a failed attempt", async () => {
	globalThis.WebSocket = class {
		constructor() {
			throw new Error("insecure");
		}
	};
	const push = await begin();
	assert.equal(push.state, "waiting");
	assert.equal(push.why.reason, "Error: insecure");
	assert.equal(warned.length, 1);
});

test("it runs where there is no window, document, location or reportError", async () => {
	for (const name of ["location", "document", "reportError", "addEventListener", "removeEventListener"]) delete globalThis[name];
	const printed = mock.method(console, "error", () => {});
	const push = await begin("https://push.example/ws");
	await last().accept();
	assert.equal(push.state, "open");
	push.on("x", () => {
		throw new Error("oops");
	});
	await last().says({ event: "x" });
	assert.equal(printed.mock.callCount(), 1);
});

// Events

test("a handler gets the data and the frame, in order, until it is taken off", async () => {
	const push = await opened();
	const got = [];
	const off = push.on("order", (data, message) => got.push([data, message.event]));
	await last().says({ event: "order", data: { id: 7 } });
	await last().says({ event: "other", data: 1 });
	await last().says({ event: "order" });
	off();
	off();
	await last().says({ event: "order", data: 3 });
	assert.deepEqual(got, [[{ id: 7 }, "order"], [undefined, "order"]]);
});

test("a handler of * sees every event once", async () => {
	const push = await opened();
	const got = [];
	push.on("*", (data, message) => void got.push(message.event));
	push.on("a", () => {});
	for (const event of ["a", "b", "*", "__proto__", ""]) await last().says({ event });
	assert.deepEqual(got, ["a", "b", "*", "__proto__", ""]);
});

test("handlers may add and remove handlers while they run", async () => {
	const push = await opened();
	const got = [];
	const off = push.on("a", () => {
		got.push(1);
		off();
		push.on("a", () => void got.push(3));
	});
	push.on("a", () => void got.push(2));
	await last().says({ event: "a" });
	assert.deepEqual(got, [1, 2]);
	await last().says({ event: "a" });
	assert.deepEqual(got, [1, 2, 2, 3]);
});

test("events of an earlier turn than the login's answer are handled", async () => {
	const push = await begin("/ws", { login: { user: "alice" } });
	const got = [];
	push.on("hello", (data) => void got.push(data));
	await last().accept();
	await last().says({ event: "hello", data: "early" });
	assert.equal(push.state, "connecting");
	assert.deepEqual(got, ["early"]);
});

test("bytes arrive as Uint8Array", async () => {
	const push = await opened();
	let got;
	push.on("file", (data, message) => void (got = [data, message.data]));
	await last().says({ event: "file", data: "AAH/gA==", encoding: "base64" });
	assert.deepEqual(got[0], Uint8Array.of(0, 1, 255, 128));
	assert.equal(got[1], got[0]);
});

test("bytes leave as base64, by emit, send and ack, and come back in an answer", async () => {
	const push = await opened();
	push.emit("file", Uint8Array.of(0, 1, 255, 128));
	const reply = push.send("file", Uint8Array.of(1));
	push.on("want", () => Uint8Array.of(2));
	await last().says({ event: "want", id: 9 });
	last().wantSent(
		{ event: "file", data: "AAH/gA==", encoding: "base64" },
		{ event: "file", data: "AQ==", encoding: "base64", id: 1 },
		{ ack: 9, data: "Ag==", encoding: "base64" },
	);
	await last().says({ ack: 1, data: "Aw==", encoding: "base64" });
	assert.deepEqual(await outcome(reply), Uint8Array.of(3));
});

test("a handler's exception is reported and harms nothing else", async () => {
	const push = await opened();
	const got = [];
	push.on("a", () => {
		throw new Error("first");
	});
	push.on("a", async () => {
		throw new Error("second");
	});
	push.on("a", () => void got.push("third"));
	await last().says({ event: "a" });
	await last().says({ event: "a" });
	assert.deepEqual(got, ["third", "third"]);
	assert.deepEqual(reported.map((e) => e.message), ["first", "second", "first", "second"]);
	assert.equal(push.state, "open");
});

test("an exception in onstate is reported and harms nothing else", async () => {
	const push = await begin();
	push.onstate = () => {
		throw new Error("oops");
	};
	await last().accept();
	assert.equal(push.state, "open");
	assert.equal(reported.length, 1);
});

test("frames that are no push.json are reported or ignored", async () => {
	const push = await opened();
	for (const frame of ["", "{", "null", '{"event":"a","data":"%","encoding":"base64"}']) await last().says(frame);
	assert.equal(reported.length, 4);
	for (const frame of ["{}", "[]", "7", '{"pong":1}', '{"ack":77}', '{"later":"addition"}']) await last().says(frame);
	assert.equal(reported.length, 4);
	assert.equal(push.state, "open");
});

// Acks

test("the library answers a push that wants its ack, handler or not", async () => {
	const push = await opened();
	await last().says({ event: "a", id: 1073741901, auto: true });
	last().wantSent({ ack: 1073741901 });
	push.on("a", () => "not this");
	await last().says({ event: "a", id: 1073741902, auto: true });
	last().wantSent({ ack: 1073741902 });
});

test("with autoAck off the library answers nothing", async () => {
	const push = await opened();
	push.autoAck = false;
	await last().says({ event: "a", id: 5, auto: true });
	last().wantSent();
	push.autoAck = true;
	await last().says({ event: "a", id: 6, auto: true });
	last().wantSent({ ack: 6 });
});

test("a push that wants no ack gets none", async () => {
	const push = await opened();
	push.on("a", () => "value");
	await last().says({ event: "a" });
	last().wantSent();
});

test("what the handler returns is the data of the program's ack", async () => {
	const push = await opened();
	const results = [undefined, null, 0, "", { ok: true }];
	push.on("a", (data) => results[data]);
	for (const i of results.keys()) await last().says({ event: "a", id: 10 + i, data: i });
	last().wantSent({ ack: 10 }, { ack: 11, data: null }, { ack: 12, data: 0 }, { ack: 13, data: "" }, { ack: 14, data: { ok: true } });
});

test("the program's ack waits for what the handler promised", async () => {
	const push = await opened();
	let resolve;
	push.on("a", () => new Promise((r) => (resolve = r)));
	await last().says({ event: "a", id: 5 });
	last().wantSent();
	resolve("saved");
	await settled();
	last().wantSent({ ack: 5, data: "saved" });
});

test("several handlers give one ack, when all are done, with the first data", async () => {
	const push = await opened();
	let resolve;
	push.on("a", () => undefined);
	push.on("a", () => new Promise((r) => (resolve = r)));
	push.on("a", () => "later");
	await last().says({ event: "a", id: 5 });
	last().wantSent();
	resolve("first");
	await settled();
	last().wantSent({ ack: 5, data: "first" });
});

test("NOACK, returned or promised by one handler, declines the program's ack", async () => {
	const push = await opened();
	push.on("a", () => NOACK);
	push.on("a", () => "value");
	push.on("b", async () => NOACK);
	await last().says({ event: "a", id: 5 });
	await last().says({ event: "b", id: 6 });
	last().wantSent();
	assert.deepEqual(reported, []);
});

test("a handler that throws or rejects gives no ack", async () => {
	const push = await opened();
	push.on("a", () => {
		throw new Error("oops");
	});
	push.on("b", () => Promise.reject(new Error("oops")));
	push.on("c", () => 1n); // no JSON
	for (const event of ["a", "b", "c"]) await last().says({ event, id: 5 });
	last().wantSent();
	assert.equal(reported.length, 3);
});

test("a push nobody handles gets no program's ack", async () => {
	const push = await opened();
	push.on("a", () => {})();
	await last().says({ event: "a", id: 5 });
	last().wantSent();
});

test("a handler of * decides about an ack only where the event has no handler", async () => {
	const push = await opened();
	push.on("*", () => NOACK);
	push.on("a", () => "own");
	await last().says({ event: "a", id: 5 });
	await last().says({ event: "b", id: 6 });
	last().wantSent({ ack: 5, data: "own" });
	push.on("c", () => {})();
	push.on("*", () => "any");
	await last().says({ event: "c", id: 7 });
	last().wantSent();
	assert.deepEqual(reported, []);
});

test("an ack never goes to another connection than the one that asked", async () => {
	const push = await opened();
	let resolve;
	push.on("a", () => new Promise((r) => (resolve = r)));
	await last().says({ event: "a", id: 5 });
	await last().ends(1006);
	await pass(2 * SECOND);
	await last().accept();
	resolve();
	await settled();
	for (const s of FakeSocket.all) s.wantSent();
});

// Sending

test("send resolves with the answer, whatever the order of answers", async () => {
	const push = await opened();
	const [a, b] = [push.send("chat", "a"), push.send("chat")];
	last().wantSent({ event: "chat", data: "a", id: 1 }, { event: "chat", id: 2 });
	await last().says({ ack: 2, data: { n: 2 } });
	await last().says({ ack: 1 });
	await last().says({ ack: 1, data: "again" });
	assert.deepEqual(await outcome(b), { n: 2 });
	assert.equal(await outcome(a), undefined);
});

test("send rejects with the server's error", async () => {
	const push = await opened();
	const [a, b] = [push.send("chat"), push.send("chat")];
	last().says({ ack: 1, error: "not today" });
	last().says({ ack: 2, error: "" });
	const error = await refusal(a);
	assert.deepEqual([error.kind, error.message, error instanceof Error], ["refused", "not today", true]);
	assert.equal((await refusal(b)).kind, "refused");
});

test("send rejects after its timeout: 10 s, or the option's, or the call's", async () => {
	const push = await opened();
	const b = await begin("/ws", { timeout: 2 * SECOND });
	await last().accept();
	for (const [send, ms] of [[() => push.send("x"), 10 * SECOND], [() => b.send("x"), 2 * SECOND], [() => b.send("x", 0, 3 * SECOND), 3 * SECOND]]) {
		const promise = send();
		let done = false;
		promise.catch(() => (done = true));
		await pass(ms - 1);
		assert.equal(done, false);
		await pass(1);
		assert.equal((await refusal(promise)).kind, "timeout");
	}
});

test("send rejects when the connection ends before the answer", async () => {
	const push = await opened();
	const promise = push.send("chat");
	last().ends(4408, "too slow");
	const error = await refusal(promise);
	assert.deepEqual([error.kind, error.code, error.message], ["gone", 4408, "too slow"]);
});

test("while not connected send rejects, emit says false, and nothing is queued", async () => {
	const push = await begin();
	assert.equal((await refusal(push.send("a"))).kind, "offline");
	assert.equal(push.emit("a"), false);
	await last().accept();
	assert.equal(push.emit("b", 1), true);
	last().wantSent({ event: "b", data: 1 });
	last().readyState = 2; // closing
	assert.equal(push.emit("c"), false);
	await last().ends(1006);
	assert.equal((await refusal(push.send("d"))).kind, "offline");
	await pass(2 * SECOND);
	await last().accept();
	last().wantSent();
});

test("what is no JSON is the caller's error", async () => {
	const push = await opened();
	assert.throws(() => push.emit("a", 1n), TypeError);
	assert.ok((await refusal(push.send("a", 1n))) instanceof TypeError);
	last().wantSent();
});

test("methods need no this", async () => {
	const { send, emit, on, close } = await opened();
	on("a", () => {});
	assert.equal(emit("a"), true);
	const promise = send("a");
	close();
	assert.equal((await refusal(promise)).kind, "gone");
});

// Login

test("the login is the first frame, and the connection open when it is answered", async () => {
	const claim = { user: "alice", token: "t", device: "d", tags: ["beta"] };
	const push = await begin("/ws", { login: claim });
	await last().accept();
	assert.equal(push.state, "connecting");
	assert.equal(push.emit("after"), true);
	last().wantSent({ login: claim }, { event: "after" });
	await last().says({ login: { user: "alice", conn: "18446744073709551615" } });
	assert.deepEqual([push.state, push.user, push.conn], ["open", "alice", "18446744073709551615"]);
});

test("each reconnect logs in again, with a fresh token", async () => {
	let n = 0;
	const push = await begin("/ws", { login: async () => ({ user: "alice", token: "t" + ++n }) });
	for (let i = 1; i <= 3; i++) {
		wantSockets(i);
		await last().accept();
		last().wantSent({ login: { user: "alice", token: "t" + i } });
		await last().says({ login: { user: "alice", conn: String(i) } });
		assert.deepEqual([push.user, push.conn], ["alice", String(i)]);
		await last().ends(1001);
		assert.deepEqual([push.user, push.conn], ["", ""]);
		await pass(push.why.delay);
	}
});

test("a login function that fails is warned about and tried again later", async () => {
	let works = false;
	const push = await begin("/ws", {
		login: async () => {
			if (!works) throw new Error("no token");
			return { user: "alice" };
		},
	});
	wantSockets(0);
	assert.deepEqual([push.state, push.why.code, push.why.reason], ["waiting", 1006, "Error: no token"]);
	assert.equal(warned.length, 1);
	works = true;
	await pass(2 * SECOND);
	await last().accept();
	last().wantSent({ login: { user: "alice" } });
});

test("a login function may have none", async () => {
	const push = await opened({ login: () => null });
	last().wantSent();
	assert.equal(push.state, "open");
});

test("a login that is never answered is given up after 20 s", async () => {
	const push = await opened({ login: { user: "alice" } });
	await pass(10 * SECOND);
	await last().says({ event: "noise" });
	await pass(10 * SECOND);
	assert.equal(push.state, "waiting");
});

test("a late login resolves with what the server made of it and is kept", async () => {
	const push = await opened();
	const promise = push.login({ user: "alice" });
	await settled();
	last().wantSent({ login: { user: "alice" } });
	last().says({ login: { user: "alice", conn: "7" } });
	assert.deepEqual(await outcome(promise), { user: "alice", conn: "7" });
	assert.deepEqual([push.user, push.conn], ["alice", "7"]);
	assert.deepEqual(push.states, [["open", 0]]);
	await last().ends(1006);
	await pass(2 * SECOND);
	await last().accept();
	last().wantSent({ login: { user: "alice" } });
});

test("a refused late login rejects with 4401 and the client stays away", async () => {
	const push = await opened();
	const promise = push.login({ user: "alice", token: "old" });
	await settled();
	last().ends(4401, "who are you");
	const error = await refusal(promise);
	assert.deepEqual([error.kind, error.code, error.message], ["gone", 4401, "who are you"]);
	assert.equal(push.state, "closed");
});

test("a login while closed, waiting or connecting connects at once with it", async () => {
	const push = await opened();
	await last().ends(4401);
	const a = push.login({ user: "a" });
	await settled();
	wantSockets(2);
	const b = push.login(() => ({ user: "b" }));
	assert.equal((await refusal(a)).kind, "gone");
	wantSockets(3);
	await last().accept();
	last().wantSent({ login: { user: "b" } });
	last().says({ login: { user: "b", conn: "1" } });
	assert.deepEqual(await outcome(b), { user: "b", conn: "1" });
	assert.equal(push.state, "open");
	await last().ends(1013);
	const c = push.login({ user: "c" });
	await settled();
	wantSockets(4);
	await last().ends(1006);
	assert.equal((await refusal(c)).kind, "gone");
	assert.equal(push.state, "waiting");
});

test("two logins at once get their own answers", async () => {
	const push = await opened();
	const [a, b] = [push.login({ user: "a" }), push.login({ user: "b" })];
	await settled();
	last().wantSent({ login: { user: "a" } }, { login: { user: "b" } });
	last().says({ login: { user: "a", conn: "1" } });
	assert.deepEqual(await outcome(a), { user: "a", conn: "1" });
	last().says({ login: { user: "b", conn: "1" } });
	assert.deepEqual(await outcome(b), { user: "b", conn: "1" });
	assert.equal(push.user, "b");
});

test("a late login whose connection ends before its token came rejects", async () => {
	const push = await opened();
	let token;
	const promise = push.login(() => new Promise((r) => (token = r)));
	await last().ends(1006);
	token({ user: "a" });
	assert.equal((await refusal(promise)).kind, "offline");
});

test("logout gives the user up and forgets the claim", async () => {
	const push = await opened({ login: { user: "alice" } });
	await last().says({ login: { user: "alice", conn: "7" } });
	last().sent = [];
	push.logout();
	last().wantSent({ logout: true });
	assert.deepEqual([push.user, push.state], ["", "open"]);
	await last().ends(1006);
	await pass(2 * SECOND);
	await last().accept();
	last().wantSent();
});

test("a logout that overtakes a login wins", async () => {
	let give;
	const push = await begin("/ws", { login: () => new Promise((r) => (give = r)) });
	push.logout();
	give({ user: "alice" });
	await settled();
	await last().accept();
	last().wantSent();
	assert.equal(push.state, "open");

	const late = await begin("/ws", { login: { user: "alice" } });
	const socket = last(); // knows the claim, and connects
	late.logout();
	assert.equal(socket.closedWith, 1000);
	await settled();
	await last().accept();
	last().wantSent();

	late.login({ user: "alice" });
	await settled();
	late.logout();
	await last().says({ login: { user: "alice", conn: "7" } });
	assert.equal(late.user, "");
});

// Coming back

test("after these close codes it comes back by itself", async () => {
	for (const code of COMES_BACK) {
		const push = await opened();
		const n = FakeSocket.all.length;
		await last().ends(code, "why not");
		assert.equal(push.state, "waiting", code);
		assert.deepEqual([push.why.code, push.why.reason], [code, "why not"]);
		await pass(push.why.delay);
		wantSockets(n + 1);
		assert.equal(push.why.delay, 0);
		push.close();
	}
});

test("after these close codes it stays away, says why, and connect starts again", async () => {
	for (const code of STAYS_AWAY) {
		const push = await opened();
		const n = FakeSocket.all.length;
		await last().ends(code, "go away");
		assert.equal(push.state, "closed");
		assert.deepEqual(push.why, { code, reason: "go away", delay: 0 });
		assert.deepEqual(push.states.at(-1), ["closed", code]);
		wantNothingLeft();
		await backOnline();
		await pass(3600 * SECOND);
		wantSockets(n);
		push.connect();
		await settled();
		wantSockets(n + 1);
		await last().accept();
		assert.equal(push.state, "open");
		push.close();
	}
});

/** The waits before the next n attempts, all of which fail. */
async function waits(push, n, code = 1006) {
	const got = [];
	for (let i = 0; i < n; i++) {
		await last().ends(code);
		const sockets = FakeSocket.all.length;
		got.push(push.why.delay);
		if (push.why.delay > 1) {
			await pass(push.why.delay - 1);
			wantSockets(sockets);
		}
		await pass(1);
		wantSockets(sockets + 1);
	}
	return got.map((ms) => ms / SECOND);
}

test("waits double from minDelay to maxDelay", async () => {
	chance = 0;
	assert.deepEqual(await waits(await begin(), 7), [1, 2, 4, 8, 15, 15, 15]);
	assert.deepEqual(await waits(await begin("/ws", { minDelay: 100, maxDelay: 1000 }), 5), [0.1, 0.2, 0.4, 0.5, 0.5]);
});

test("chance spreads each wait over the upper half", async () => {
	chance = 1;
	assert.deepEqual(await waits(await begin(), 7), [2, 4, 8, 16, 30, 30, 30]);
	chance = 0.25;
	assert.deepEqual(await waits(await begin(), 3), [1.25, 2.5, 5]);
	chance = 1 / 3;
	assert.deepEqual(await waits(await begin(), 2), [1.333, 2.667]); // whole ms
});

test("waits stay within maxDelay for ever", async () => {
	chance = 1;
	assert.ok((await waits(await begin(), 1100)).every((s) => s <= 30));
});

test("after 1013 the first wait is longer", async () => {
	chance = 0;
	assert.deepEqual(await waits(await begin(), 3, 1013), [8, 15, 15]);
});

test("a connection that did not stay does not shorten the next wait", async () => {
	chance = 0;
	const push = await begin();
	await waits(push, 3);
	await last().accept();
	await pass(10 * SECOND);
	assert.deepEqual(await waits(push, 1), [8]);
});

test("a connection that stayed does", async () => {
	chance = 0;
	const push = await begin();
	await waits(push, 4);
	await last().accept();
	for (let i = 0; i < 4; i++) {
		await pass(10 * SECOND);
		await last().says({ event: "x" });
	}
	assert.deepEqual(await waits(push, 2), [1, 2]);
});

test("after a final close the waits start anew", async () => {
	chance = 0;
	const push = await begin();
	await waits(push, 4);
	await last().ends(4409);
	push.connect();
	await settled();
	assert.deepEqual(await waits(push, 2), [1, 2]);
});

test("connect ends a wait", async () => {
	const push = await opened();
	await last().ends(1013);
	push.connect();
	await settled();
	wantSockets(2);
	await last().accept();
	await pass(20 * SECOND);
	wantSockets(2);
});

test("onstate is told every change with its reason", async () => {
	const push = await opened();
	await last().ends(1001);
	await pass(2 * SECOND);
	await last().accept();
	await last().ends(4410, "bye");
	assert.deepEqual(push.states, [["open", 0], ["waiting", 1001], ["connecting", 1001], ["open", 1001], ["closed", 4410]]);
});

test("onstate may close the client at any change", async () => {
	for (const at of ["connecting", "open", "waiting"]) {
		const push = await begin("/ws", { login: { user: "a" } });
		push.onstate = (state) => state === at && push.close();
		await last().accept();
		await last().says({ login: { user: "a", conn: "1" } });
		await last().ends(1006);
		await pass(60 * SECOND);
		assert.equal(push.state, "closed");
		wantNothingLeft();
	}
});

// Noticing death

test("after 25 s of silence it asks, and 10 s later it reconnects", async () => {
	const push = await opened();
	await pass(25 * SECOND - 1);
	last().wantSent();
	await pass(1);
	last().wantSent({ ping: 1 });
	await pass(10 * SECOND - 1);
	assert.equal(push.state, "open");
	await pass(1);
	assert.deepEqual([push.state, push.why.code, push.why.reason], ["waiting", 1006, "silence"]);
	assert.equal(last().closedWith, 1000);
	await pass(push.why.delay);
	wantSockets(2);
});

test("a pong, or any other frame, is life", async () => {
	const push = await opened();
	for (const frame of [{ pong: 1 }, { event: "x" }, "garbage"]) {
		await pass(25 * SECOND);
		last().wantSent({ ping: 1 });
		await pass(9 * SECOND);
		await last().says(frame);
	}
	await pass(24 * SECOND);
	await last().says({ event: "x" });
	await pass(24 * SECOND);
	last().wantSent();
	assert.equal(push.state, "open");
	wantSockets(1);
});

test("a socket given up is heard no more", async () => {
	const push = await opened();
	const got = [];
	push.on("x", (data) => got.push(data));
	const dead = last();
	await pass(35 * SECOND);
	await pass(push.why.delay);
	await last().accept();
	await dead.says({ event: "x" });
	await dead.ends(4410);
	assert.deepEqual([push.state, got], ["open", []]);
});

test("back online it reconnects at once", async () => {
	const push = await opened();
	await last().ends(1006);
	await backOnline();
	wantSockets(2);
	await last().accept();
	assert.equal(push.state, "open");
	await pass(20 * SECOND);
	wantSockets(2);
});

test("back in sight it reconnects at once, going out of sight it does not", async () => {
	await opened();
	await last().ends(1006);
	await seen(true);
	wantSockets(1);
	await seen(false);
	wantSockets(2);
});

test("back online it reconnects at once out of sight, too", async () => {
	await opened();
	await last().ends(1006);
	document.hidden = true;
	await backOnline();
	wantSockets(2);
});

test("neither shortens the wait after 1013", async () => {
	const push = await opened();
	await last().ends(1013);
	await backOnline();
	await seen(false);
	wantSockets(1);
	await pass(push.why.delay);
	wantSockets(2);
});

test("back online or in sight while open, it asks and gives the server 10 s", async () => {
	for (const wake of [backOnline, () => seen(false)]) {
		const push = await opened();
		await pass(5 * SECOND);
		await wake();
		await pass(5 * SECOND);
		await wake(); // no second question, no second grace
		last().wantSent({ ping: 1 });
		await pass(5 * SECOND);
		assert.deepEqual([push.state, push.why.reason], ["waiting", "silence"]);
		push.close();
	}
});

// Ending

test("every waking asks again once the last question was answered", async () => {
	await opened();
	await seen(false);
	await last().says({ pong: 1 });
	await seen(false);
	last().wantSent({ ping: 1 }, { ping: 1 });
});

test("close leaves no timer, no listener, no open promise, from any state", async () => {
	const reach = {
		connecting: () => begin(),
		open: () => opened(),
		waiting: async () => {
			const push = await opened();
			await last().ends(1006);
			return push;
		},
		asking: async () => {
			const push = await opened();
			await pass(25 * SECOND);
			return push;
		},
		"logging in": () => opened({ login: { user: "alice" } }),
	};
	for (const [name, make] of Object.entries(reach)) {
		const push = await make();
		const sent = push.send("x").catch((e) => e.kind);
		assert.ok(timers.size > 0, name);
		push.close();
		wantNothingLeft();
		assert.match(await sent, /gone|offline/);
		assert.equal(push.state, "closed", name);
		assert.equal(push.why.code, 1000);
		const n = FakeSocket.all.length;
		await pass(3600 * SECOND);
		wantSockets(n);
		push.close();
		assert.equal(push.states.filter(([state]) => state === "closed").length, 1, "told closed once");
	}
});

test("close closes the socket with 1000", async () => {
	const push = await opened();
	push.close();
	assert.equal(last().closedWith, 1000);
});

test("after close, connect starts again with the same handlers and login", async () => {
	const push = await opened({ login: { user: "alice" } });
	let got;
	push.on("x", (data) => void (got = data));
	push.close();
	push.connect();
	await settled();
	await last().accept();
	last().wantSent({ login: { user: "alice" } });
	await last().says({ event: "x", data: 1 });
	assert.equal(got, 1);
});

test("two clients in one page do not meet", async () => {
	const a = await opened();
	const socketOfA = last();
	const b = await opened();
	const got = [];
	a.on("x", () => void got.push("a"));
	b.on("x", () => void got.push("b"));
	await last().says({ event: "x" });
	b.close();
	await socketOfA.says({ event: "x" });
	assert.deepEqual([got, a.state, b.state], [["b", "a"], "open", "closed"]);
});

test("it stays small: 6.6 KB without comments and indentation, about 4 KB minified", () => {
	const bare = source
		.replace(/\/\*\*.*?\*\//gs, "")
		.replace(/(^|\s)\/\/.*/g, "")
		.replace(/\n\s*/g, "\n");
	assert.ok(bare.length < 6600, `${bare.length} bytes`);
});
