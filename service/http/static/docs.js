// Starts Swagger UI. It is a file of its own since no page of ours may run inline code.
SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#docs",
  deepLinking: true,
  displayRequestDuration: true,
  validatorUrl: null, // else it asks a server on the internet whether our document is valid
});
