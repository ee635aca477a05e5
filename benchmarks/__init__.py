"""The client-side cost of a call, compared with 0.1.0, the OpenAI SDK, aiohttp and a bare loop."""
