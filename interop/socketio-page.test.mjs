// A page as it is written for netty-socketio, with jQuery and socket.io-client,
// in headless Chromium: served by another server, opened from disk, and the
// one of examples/hello. Run it with interop/run.

import assert from "node:assert/strict";
import { copyFile, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { createServer } from "node:http";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { basename, join } from "node:path";
import { after, before, describe, test as nodeTest } from "node:test";
import { pathToFileURL } from "node:url";

import { newContext, startBrowser, startHello, startSioserver, test, until, within } from "./harness.mjs";

const require = createRequire(import.meta.url);
const scripts = {
	"jquery.js": require.resolve("jquery/dist/jquery.min.js"),
	"socket.io-2.3.0.js": require.resolve("sio2.3/dist/socket.io.js"),
	"socket.io-4.8.4.js": join(require.resolve("sio4.8/package.json"), "../dist/socket.io.min.js"),
};
const versions = ["2.3.0", "4.8.4"];

/** The page. Its query says which server, and with which options. */
const thePage = (version) => `<!doctype html>
<meta charset="utf-8">
<link rel="icon" href="data:,">
<title>Socket.IO ${version}</title>
x <b id="x"></b> y <b id="y"></b>
<script src="jquery.js"></script>
<script src="socket.io-${version}.js"></script>
<script>
	var query = new URLSearchParams(location.search);
	var url = query.get('server');
	var socket = query.has('options') ? io.connect(url, JSON.parse(query.get('options'))) : io.connect(url);
	socket.on('hello', function (data) {
		$('#x').text(data.x);
		$('#y').text(data.y);
	});
	socket.on('note', function (data, answer) {
		answer({ read: data });
	});
</script>
`;

let browser, server, dir, site, sites;
before(async () => {
	dir = await mkdtemp(join(tmpdir(), "page-"));
	for (const [name, path] of Object.entries(scripts)) await copyFile(path, join(dir, name));
	for (const version of versions) await writeFile(join(dir, `${version}.html`), thePage(version));
	site = createServer(async (request, response) => {
		const name = basename(new URL(request.url, "http://localhost").pathname);
		const type = name.endsWith(".js") ? "text/javascript" : "text/html";
		response.writeHead(200, { "Content-Type": type }).end(await readFile(join(dir, name)));
	});
	await new Promise((resolve) => site.listen(0, "127.0.0.1", resolve));
	const { port } = site.address();
	sites = {
		"another server": `http://127.0.0.1:${port}/`,
		"another site": `http://site.example:${port}/`,
		disk: pathToFileURL(dir).href + "/",
	};
	server = await startSioserver();
	browser = await startBrowser();
});
after(async () => {
	await browser?.close();
	await server?.stop();
	await server?.stop("SIGKILL");
	site?.closeAllConnections();
	site?.close();
	await rm(dir, { recursive: true, force: true });
});

/** A page in a context of its own, which is closed with the test. */
async function newPage(t) {
	const context = await newContext(browser);
	t.after(() => context.close());
	return Object.assign(await context.newPage(), { complaints: context.complaints });
}

let names = 0;

/** Opens the page, which names a user of its own in the server's URL. */
async function open(t, version, from, options, server) {
	const page = await newPage(t);
	const user = `user${++names}`;
	const query = new URLSearchParams({ server: `${server.url}/?userId=${user}&tab=${user}`, ...(options && { options: JSON.stringify(options) }) });
	await page.goto(`${from}${version}.html?${query}`);
	return Object.assign(page, { user });
}

const numbers = (page) => page.evaluate(() => [document.querySelector("#x").textContent, document.querySelector("#y").textContent]);

/** Waits until both numbers have changed, three times. */
async function numbersChange(page) {
	let old = ["–", "–"];
	for (let i = 0; i < 3; i++) {
		const now = await until("x and y change", async () => {
			const now = await numbers(page);
			return now[0] !== old[0] && now[1] !== old[1] && now[0] !== "" && now;
		});
		assert.match(now.join(), /^\d{1,2},\d{1,2}$/);
		old = now;
	}
}

const transportOf = (page) => page.evaluate(() => socket.io.engine.transport.name);

describe("a page of netty-socketio", { concurrency: 4 }, () => {
	for (const version of versions) {
		for (const from of ["another server", "disk"]) {
			for (const transport of ["polling", "websocket", undefined]) {
				const over = `${version}, from ${from}, over ${transport ?? "what it likes"}`;
				nodeTest(`${over}: x and y change each second, pushes are acked, bytes stay bytes`, { timeout: 60_000 }, async (t) => {
					const page = await open(t, version, sites[from], transport && { transports: [transport] }, server);
					await numbersChange(page);
					assert.equal(await transportOf(page), transport ?? "websocket");
					const { receipt } = await server.push({ user: page.user, event: "note", ack: "biz" }, "é🙂");
					assert.deepEqual([receipt.acked, receipt.deliveries[0].reply], [1, { read: "é🙂" }]);
					for (const n of [1, 256, 100_000]) assert.equal(await within(`${n} bytes are back`, page.evaluate(echo, n)), "same", `${n} bytes`);

					const seen = await server.ask("GET", "/requests", { tab: page.user });
					assert.equal(seen["GET websocket"] ?? 0, transport === "polling" ? 0 : 1);
					assert.equal("GET polling" in seen, transport !== "websocket");
					if (transport === "polling" && version === "2.3.0") { // it posts bytes as they are, and has to ask before
						assert.ok(seen["POST polling application/octet-stream"] > 0, JSON.stringify(seen));
						assert.ok(seen["OPTIONS polling"] > 0, JSON.stringify(seen));
					}
					assert.deepEqual(page.complaints, []);
				});
			}
		}
	}
});

/** In the page: what becomes of n bytes that go there and back, beside text. */
function echo(n) {
	const there = Uint8Array.from({ length: n }, (_, i) => (i * 7 + (i >> 8)) % 256);
	const problem = (text, back) => {
		if (text !== "é🙂" || !(back instanceof ArrayBuffer)) return `${text} and ${back?.constructor?.name}`;
		const bytes = new Uint8Array(back);
		return bytes.length === n && bytes.every((b, i) => b === there[i]) ? "same" : `${bytes.length} bytes: ${bytes.slice(0, 20)}`;
	};
	const event = new Promise((resolve) => socket.once("echo", (...args) => resolve(problem(...args))));
	const ack = new Promise((resolve) => socket.emit("echo", "é🙂", there.buffer, (...args) => resolve(problem(...args))));
	return Promise.all([event, ack]).then(([event, ack]) => (event === ack ? event : `event: ${event}, ack: ${ack}`));
}

test("a page may send headers and credentials of its own over polling", async (t) => {
	for (const options of [{ extraHeaders: { Authorization: "Bearer x", "X-Own": "y" } }, { withCredentials: true }]) {
		const page = await open(t, "4.8.4", sites["another server"], { transports: ["polling"], ...options }, server);
		await numbersChange(page);
		const seen = await server.ask("GET", "/requests", { tab: page.user });
		assert.equal("OPTIONS polling" in seen, "extraHeaders" in options);
		assert.deepEqual(page.complaints, []);
	}
});

for (const version of versions) {
	test(`a page with ${version} comes back after a crash of the server`, async (t) => {
		let own = await startSioserver();
		t.after(() => own.stop("SIGKILL"));
		const page = await open(t, version, sites["another server"], undefined, own);
		await numbersChange(page);
		await own.stop("SIGKILL");
		await until("it noticed", () => page.evaluate(() => !socket.connected));
		own = await startSioserver(own.address);
		await until("it is back", () => page.evaluate(() => socket.connected));
		await numbersChange(page);
		assert.equal((await own.push({ user: page.user, event: "note", ack: "biz" }, 1)).receipt.acked, 1);
	});

	for (const transport of ["polling", "websocket"]) {
		test(`a page with ${version} of a site that may not connect cannot, over ${transport}`, async (t) => {
			const page = await newPage(t);
			const before = (await server.stats()).refused.origin ?? 0;
			const query = new URLSearchParams({ server: server.url + "/?userId=mallory", options: JSON.stringify({ transports: [transport] }) });
			await page.goto(`${sites["another site"]}${version}.html?${query}`);
			await within("it is turned away", page.evaluate(() => new Promise((resolve) => socket.once("connect_error", resolve))));
			assert.ok((await server.stats()).refused.origin > before);
			assert.equal((await server.push({ user: "mallory", event: "note" }, 1)).receipt.targets, 0);
			assert.ok(!(await page.evaluate(() => socket.connected)));
		});
	}
}

// From here on, the page of examples/hello.

/** Answers what a page asks a CDN for, except what is to be blocked. */
async function cdn(page, blocked = /^$/) {
	const asked = [];
	await page.route(
		(url) => url.protocol === "https:",
		async (route) => {
			const url = route.request().url();
			asked.push(url);
			const name = /jquery/.test(url) ? "jquery.js" : "socket.io-2.3.0.js";
			if (blocked.test(name)) return route.abort();
			await route.fulfill({ path: join(dir, name), contentType: "text/javascript", headers: { "Access-Control-Allow-Origin": "*" } });
		},
	);
	return () => page.complaints.filter((text) => !asked.some((url) => text === `asked the network for ${url}`));
}

async function hello(t) {
	const program = await startHello();
	t.after(() => program.stop("SIGKILL"));
	return program;
}

/** The page of a program in a file of its own. */
async function saved(program) {
	const file = join(dir, `saved${++names}.html`);
	await writeFile(file, await (await fetch(program.url + "/socketio")).text());
	return pathToFileURL(file).href;
}

/** Waits until the page says that there is a problem, and what. It says so in red. */
async function problem(page, pattern) {
	const text = await until(`it says ${pattern}`, async () => {
		const text = await page.textContent("#problem");
		return pattern.test(text) && text;
	});
	const [r, g, b] = await page.$eval("#problem", (node) => getComputedStyle(node).color.match(/\d+/g).map(Number));
	assert.ok(r > 150 && r > 1.4 * g && r > 1.4 * b, `rgb(${r}, ${g}, ${b}) is no red`);
	assert.ok(await page.isVisible("#problem"));
	return text;
}

test("hello's page for socket.io-client shows x and y, new ones each second", async (t) => {
	const program = await hello(t);
	const page = await newPage(t);
	const complaints = await cdn(page);
	await page.goto(program.url + "/socketio");
	await numbersChange(page);
	assert.equal(await page.textContent("#problem"), "");
	assert.deepEqual(complaints(), []);
});

test("hello's page works from disk", async (t) => {
	const program = await hello(t);
	const page = await newPage(t);
	const complaints = await cdn(page);
	await page.goto(`${await saved(program)}?${new URLSearchParams({ server: program.url })}`);
	await numbersChange(page);
	assert.equal(await page.textContent("#problem"), "");
	assert.deepEqual(complaints(), []);
});

for (const [blocked, pattern] of [[/./, /jquery and socket\.io/i], [/jquery/, /^jquery /i], [/socket/, /^socket\.io/i]]) {
	test(`hello's page says in red what is missing when ${blocked} is blocked`, async (t) => {
		const program = await hello(t);
		const page = await newPage(t);
		const errors = [];
		page.on("pageerror", (error) => errors.push(String(error)));
		await cdn(page, blocked);
		await page.goto(program.url + "/socketio");
		await problem(page, pattern);
		assert.deepEqual(errors, []);
	});
}

test("hello's page says in red that the program is gone, and takes it back when it is there again", async (t) => {
	let program = await hello(t);
	const page = await newPage(t);
	await cdn(page);
	await page.goto(`${await saved(program)}?${new URLSearchParams({ server: program.url })}`);
	await numbersChange(page);
	await program.stop();
	await problem(page, /./);
	program = await startHello(program.address);
	t.after(() => program.stop("SIGKILL"));
	await until("the text is gone", async () => (await page.textContent("#problem")) === "");
	await numbersChange(page);
});

test("hello's page from disk looks for the program where it is by default", async (t) => {
	const program = await hello(t);
	const page = await newPage(t);
	const asked = [];
	await cdn(page);
	await page.route("http://127.0.0.1:9092/**", (route) => {
		asked.push(route.request().url());
		return route.abort();
	});
	await page.goto(await saved(program));
	await problem(page, /127\.0\.0\.1:9092/);
	assert.match(asked[0], /^http:\/\/127\.0\.0\.1:9092\/socket\.io\/\?EIO=3&transport=polling/);
});
