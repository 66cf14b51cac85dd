// client/js/push.js where it belongs, in a browser, against a real engine (that
// of examples/hello). Its own test, client/js/push.test.mjs, has the fakes and
// the corner cases. Run it with interop/run.

import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { after, afterEach, before, beforeEach } from "node:test";

import { minify } from "terser";

import { newContext, startBrowser, startHello, test, until } from "./harness.mjs";

test("it is under 4 KB minified", async () => {
	const source = await readFile(new URL("../client/js/push.js", import.meta.url), "utf8");
	const { code } = await minify(source, { module: true });
	assert.ok(Buffer.byteLength(code) < 4096, `${Buffer.byteLength(code)} bytes`);
});

let browser, hello, context, page;

before(async () => {
	browser = await startBrowser();
});
after(() => browser?.close());
beforeEach(async () => {
	hello = await startHello();
	context = await newContext(browser);
	// A page of the same origin without a client of its own.
	page = await context.newPage();
	await page.goto(hello.url + "/nodes");
	await page.evaluate(async () => {
		Object.assign(window, await import("/push.js"));
		window.log = [];
	});
});
afterEach(async () => {
	await context?.close();
	await hello?.stop();
	await hello?.stop("SIGKILL");
});

/** Connects as user, as window.push; its states and events go to window.log. */
const connect = (user, options = {}) =>
	page.evaluate(
		([user, options]) =>
			new Promise((resolve) => {
				window.push = connect("/ws", { login: { user, device: "page" }, ...options });
				window.push.onstate = (state, why) => {
					window.log.push([state, why.code]);
					if (state === "open") resolve();
				};
			}),
		[user, options],
	);

test("a login is answered with the user and the connection's id", async () => {
	await connect("alice");
	const who = await page.evaluate(() => ({ user: push.user, conn: push.conn }));
	assert.equal(who.user, "alice");
	const { receipt } = await hello.push({ user: "alice" }, 1);
	assert.deepEqual(receipt.deliveries.map((d) => d.conn), [who.conn]);
	await page.evaluate(() => push.login({ user: "bob" }));
	assert.equal((await hello.push({ user: "alice" }, 1)).status, 404);
	assert.equal((await hello.push({ user: "bob" }, 1)).receipt.deliveries[0].conn, who.conn);
	await page.evaluate(() => push.logout());
	await until("bob is gone", async () => (await hello.push({ user: "bob" }, 1)).status === 404);
	assert.deepEqual(context.complaints, []);
});

test("what the server's handler returns resolves send, what it refuses rejects it", async () => {
	await connect("alice");
	const answers = await page.evaluate(async () => [
		await push.send("say", "grüß dich 🙂"),
		await push.send("say", "").catch((e) => [e.kind, e.message]),
		await push.send("nonsense", 1).catch((e) => [e.kind, e.message]),
	]);
	assert.deepEqual(answers, [1, ["refused", "say 1 to 500 bytes"], ["refused", "unknown event"]]);
});

test("what a handler returns, or resolves to, is the program's ack", async () => {
	await connect("alice");
	await page.evaluate(() => {
		push.on("sum", (list) => list.reduce((a, b) => a + b, 0));
		push.on("later", (data) => new Promise((resolve) => setTimeout(resolve, 100, { got: data })));
		push.on("bytes", () => new Uint8Array([1, 2, 255]));
		push.on("silent", () => NOACK);
	});
	const reply = async (event, data) => {
		const { status, receipt } = await hello.push({ user: "alice", event, ack: "biz" }, data);
		return [status, receipt.deliveries[0].reply];
	};
	assert.deepEqual(await reply("sum", [1, 2, 3]), [200, 6]);
	assert.deepEqual(await reply("later", "ü"), [200, { got: "ü" }]);
	assert.deepEqual(await reply("bytes", null), [200, "AQL/"]);
	assert.deepEqual(await reply("silent", null), [504, undefined]);
	assert.deepEqual(context.complaints, []);
});

test("pushes arrive in the order of the calls", async () => {
	await connect("alice");
	await page.evaluate(() => push.on("n", (n) => window.log.push(n)));
	const want = Array.from({ length: 50 }, (_, i) => i);
	for (const n of want) await hello.push({ user: "alice", event: "n" }, n);
	await until("all are there", () => page.evaluate(() => log.includes(49)));
	assert.deepEqual(await page.evaluate(() => log.filter(Number.isInteger)), want);
});

test("it comes back after a restart, logs in again, and rejects what was under way", async () => {
	await connect("alice", { minDelay: 100, maxDelay: 400 });
	await hello.stop();
	await until("it waits", () => page.evaluate(() => push.state !== "open"));
	assert.deepEqual(await page.evaluate(() => push.send("say", "hi").catch((e) => e.kind)), "offline");
	hello = await startHello(hello.address);
	await until("it is back", () => page.evaluate(() => push.state === "open"));
	assert.equal((await hello.push({ user: "alice", ack: "auto" }, 1)).receipt.acked, 1);
	assert.deepEqual((await page.evaluate(() => log))[1], ["waiting", 1001]);
});

test("closed by the page it stays closed, until told to connect", async () => {
	await connect("alice");
	await page.evaluate(() => push.close());
	await until("alice is gone", async () => (await hello.stats()).users === 0);
	assert.equal(await page.evaluate(() => push.state), "closed");
	await page.evaluate(() => push.connect());
	await until("alice is back", async () => (await hello.stats()).users === 1);
});
