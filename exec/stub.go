package exec

type template struct{ dynamic bool }

func (template) uses() string               { return "" }
func parseTemplate(*Spec) (template, error) { return template{}, nil }
func (f *Function) prepare(c *Call) (input, error) {
	return input{data: c.Input, rest: c.Rest}, nil
}
