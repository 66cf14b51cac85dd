// Starts and ends what the tests are about: examples/hello and Chromium. Every
// wait is bounded, every process is ended by its own handle.

import assert from "node:assert/strict";
import { execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { createInterface } from "node:readline";
import { test as nodeTest } from "node:test";

import { chromium } from "playwright-core";

export const WAIT = 15_000; // the longest wait for anything, ms

/** node:test's, in at most a minute. */
export const test = (name, run) => nodeTest(name, { timeout: 60_000 }, run);

/** The program, listening on address. url is the page's; stop() is Ctrl-C. */
export async function startHello(address = "127.0.0.1:0") {
	const bin = process.env.HELLO;
	assert.ok(bin, "HELLO names no program: run interop/run");
	const child = spawn(bin, ["-http", address], { stdio: ["ignore", "pipe", "pipe"] });
	let said = "";
	child.stderr.on("data", (b) => (said += b));
	const lines = createInterface({ input: child.stdout });
	const url = await new Promise((resolve, reject) => {
		const late = setTimeout(() => reject(new Error("hello says no address: " + said)), WAIT);
		lines.on("line", (line) => {
			said += line + "\n";
			if (!/^http:\S+$/.test(line)) return;
			clearTimeout(late);
			resolve(line);
		});
		child.once("exit", (code) => reject(new Error(`hello ended with ${code}: ${said}`)));
	});
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
		/** POSTs a push and returns { status, receipt }. */
		async push(query, data) {
			const answer = await fetch(`${url}/push?${new URLSearchParams(query)}`, {
				method: "POST",
				body: JSON.stringify(data),
				signal: AbortSignal.timeout(WAIT),
			});
			return { status: answer.status, receipt: await answer.json() };
		},
		async stats() {
			const answer = await fetch(`${url}/stats`, { signal: AbortSignal.timeout(WAIT) });
			return answer.json();
		},
	};
}

/** Chromium. Close it with close(). */
export async function startBrowser() {
	const path = execFileSync("sh", ["-c", "command -v chromium"], { encoding: "utf8" }).trim();
	return chromium.launch({
		executablePath: path,
		timeout: 60_000,
		args: ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"],
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
			if (protocol !== "data:" && hostname !== "127.0.0.1") complaints.push(`asked the network for ${r.url()}`);
		});
	});
	return Object.assign(context, { complaints });
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
