// Starts and ends what the tests are about: examples/hello, sioserver and
// Chromium. Every wait is bounded, every process is ended by its own handle.

import assert from "node:assert/strict";
import { execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { createInterface } from "node:readline";
import { test as nodeTest } from "node:test";

import { chromium } from "playwright-core";

export const WAIT = 15_000; // the longest wait for anything, ms

/** node:test's, in at most a minute. */
export const test = (name, run) => nodeTest(name, { timeout: 60_000 }, run);

/** examples/hello, listening on address. */
export const startHello = (address) => start("HELLO", address);

/** sioserver, listening on address, with more of its flags. */
export const startSioserver = (address, ...flags) => start("SIOSERVER", address, flags);

/**
 * The program that the environment names, listening on address. url is what it
 * says; stop() is Ctrl-C.
 */
async function start(variable, address = "127.0.0.1:0", flags = []) {
	const bin = process.env[variable];
	assert.ok(bin, `${variable} names no program: run interop/run`);
	const child = spawn(bin, ["-http", address, ...flags], { stdio: ["ignore", "pipe", "pipe"] });
	let said = "";
	child.stderr.on("data", (b) => (said += b));
	const lines = createInterface({ input: child.stdout });
	const url = await new Promise((resolve, reject) => {
		const late = setTimeout(() => reject(new Error(`${variable} says no address: ${said}`)), WAIT);
		lines.on("line", (line) => {
			said += line + "\n";
			if (!/^http:\S+$/.test(line)) return;
			clearTimeout(late);
			resolve(line);
		});
		child.once("exit", (code) => reject(new Error(`${variable} ended with ${code}: ${said}`)));
	});
	/** What the program can be asked; under is before the paths of its routes. */
	const routes = (under) => {
		const ask = async (method, path, query, body) =>
			fetch(`${url}${under}${path}?${new URLSearchParams(query)}`, { method, body, signal: AbortSignal.timeout(WAIT) });
		return {
			/** POSTs a push and returns { status, receipt }. */
			async push(query, data) {
				const answer = await ask("POST", "/push", query, JSON.stringify(data));
				return { status: answer.status, receipt: await answer.json() };
			},
			async stats() {
				return (await ask("GET", "/stats")).json();
			},
			/** Asks one of the program's other routes, and returns its JSON. */
			async ask(method, path, query) {
				const answer = await ask(method, path, query);
				assert.equal(answer.status, 200, `${path}: ${answer.ok || (await answer.text())}`);
				return answer.json();
			},
		};
	};
	return {
		url,
		address: new URL(url).host,
		said: () => said,
		async stop(signal = "SIGINT") {
			if (child.exitCode !== null || child.signalCode !== null) return;
			const late = setTimeout(() => child.kill("SIGKILL"), WAIT);
			const exit = once(child, "exit");
			child.kill(signal);
			const [code] = await exit;
			clearTimeout(late);
			if (signal === "SIGINT") assert.equal(code, 0, said);
		},
		...routes(""),
		/** A node's push, stats and ask, of a sioserver that is several. */
		node: (name) => routes(`/node/${name}`),
	};
}

/** Chromium, for which names ending in .example are this machine. Close it with close(). */
export async function startBrowser() {
	const path = execFileSync("sh", ["-c", "command -v chromium"], { encoding: "utf8" }).trim();
	return chromium.launch({
		executablePath: path,
		timeout: 60_000,
		args: ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run", "--host-resolver-rules=MAP *.example 127.0.0.1"],
	});
}

/** A context whose pages collect their complaints into .complaints. */
export async function newContext(browser, options = {}) {
	const context = await browser.newContext(options);
	context.setDefaultTimeout(WAIT);
	const complaints = [];
	context.on("page", (page) => {
		page.on("console", (m) => {
			const icon = m.location().url.endsWith("/favicon.ico"); // Chromium's own wish, where a page names none
			if (["error", "warning"].includes(m.type()) && !icon) complaints.push(m.text());
		});
		page.on("pageerror", (error) => complaints.push(String(error)));
		page.on("requestfailed", (r) => complaints.push(`${r.method()} ${r.url()} failed`));
		page.on("request", (r) => {
			const { protocol, hostname } = new URL(r.url());
			if (!["data:", "file:"].includes(protocol) && hostname !== "127.0.0.1") complaints.push(`asked the network for ${r.url()}`);
		});
	});
	return Object.assign(context, { complaints });
}

/** promise's value, if it comes in time. */
export async function within(what, promise, ms = WAIT) {
	let late;
	const never = new Promise((_, reject) => {
		late = setTimeout(() => reject(new Error(`waited in vain until ${what}`)), ms);
	});
	return Promise.race([promise, never]).finally(() => clearTimeout(late));
}

/** Waits until check() answers something true, and returns that. */
export async function until(what, check) {
	for (const end = Date.now() + WAIT; ; ) {
		const value = await check();
		if (value) return value;
		if (Date.now() > end) assert.fail(`waited in vain until ${what}`);
		await new Promise((resolve) => setTimeout(resolve, 50));
	}
}
